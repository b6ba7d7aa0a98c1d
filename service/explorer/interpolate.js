/** An interpolation between two images, compared with a cross-fade of their pixels. */

import { find, make } from "./dom.js";
import { nested } from "./model.js";
import { latestOnly } from "./latest.js";
import { context, film, pngBlob } from "./pictures.js";
import { curl, literal, python, recipe } from "./recipe.js";

const FRAMES = 25;
const STRIP = 2; // every second frame is a thumbnail
const OFFERED = 6; // images to select from, for each end

/** @typedef {import("./session.js").Encoded} Encoded */

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function interpolate(panel, session) {
  const { model, signal } = session;
  const numbersMixed = screen(find(panel, "[data-is=numbers]", HTMLCanvasElement), model);
  const pixelsMixed = screen(find(panel, "[data-is=pixels]", HTMLCanvasElement), model);
  const strip = find(panel, "[data-is=strip]", HTMLCanvasElement);
  const scrubber = find(panel, "[name=way]", HTMLInputElement);
  const method = find(panel, "[name=method]", HTMLSelectElement);
  const [start, end] = ["from", "to"].map((name) => find(panel, `[data-for=${name}]`, HTMLFieldSetElement));
  const showRecipe = recipe(panel);
  const count = Math.min(FRAMES, model.rows);
  /** @type {ImageBitmap[]} */
  let frames = [];
  /** @type {Encoded[]} */
  let offered = [];
  let chosen = [0, 2];

  const show = () => {
    const at = scrubber.valueAsNumber;
    find(panel, "output", HTMLOutputElement).value = `${Math.round((100 * at) / (count - 1))} %`;
    if (!frames.length) return;
    numbersMixed.drawImage(frames[at], 0, 0);
    pixelsMixed.globalAlpha = 1;
    pixelsMixed.drawImage(frames[0], 0, 0);
    pixelsMixed.globalAlpha = at / (count - 1);
    pixelsMixed.drawImage(frames[count - 1], 0, 0);
  };

  const load = latestOnly(panel, signal, async () => {
    const latents = chosen.map((index) => nested(offered[index].latents, model.shape));
    const query = { n: count, method: method.value };
    const call = session.to({ path: "interpolate", query, json: { latents } });
    const { images } = await session.json(call);
    frames = await Promise.all(images.map((/** @type {string} */ image) => createImageBitmap(pngBlob(image))));
    film(strip, frames.filter((_, index) => index % STRIP === 0), model);
    show();
    showRecipe(
      [
        curl({ ...call, accept: "image/png" }, "interpolation.png"),
        curl({ ...call, accept: "image/gif" }, "interpolation.gif"),
      ],
      python(
        model.reference,
        [
          `ends = np.array(${literal(latents)}, np.float32)`,
          `images = client.interpolate(latents=ends, n=${count}, method=${literal(method.value)})`,
          "print(images.shape)",
        ],
        ["import numpy as np"],
      ),
    );
  });

  const offer = () => {
    const samples = session.samples.value ?? [];
    const { value: picture } = session.picture;
    offered = [...(picture ? [picture] : []), ...samples].slice(0, OFFERED);
    if (offered.length < 2) return;
    chosen = chosen.map((index) => Math.min(index, offered.length - 1));
    [start, end].forEach((side, which) => {
      const choices = offered.map(({ url }, index) => choice(side, url, {
        name: picture && index === 0 ? "your picture" : `sample ${index + (picture ? 0 : 1)}`,
        checked: index === chosen[which],
        pick: () => { chosen[which] = index; load(); },
      }));
      side.replaceChildren(find(side, "legend", HTMLLegendElement), ...choices);
    });
    load();
  };

  film(strip, new Array(Math.ceil(count / STRIP)), model); // reserves its final size
  scrubber.max = String(count - 1);
  scrubber.valueAsNumber = Math.floor(count / 2);
  scrubber.addEventListener("input", show, { signal });
  method.addEventListener("change", () => load(), { signal });
  session.picture.watch(offer);
  session.samples.watch(offer);
}

/**
 * @param {HTMLFieldSetElement} side
 * @param {string} url
 * @param {{ name: string, checked: boolean, pick: () => void }} how
 */
function choice(side, url, { name, checked, pick }) {
  const input = make("input", { type: "radio", name: side.dataset.for, checked, className: "unseen" });
  input.addEventListener("change", pick);
  return make("label", {}, input, make("img", { className: "picture", src: url, alt: name }));
}

/** @param {HTMLCanvasElement} canvas @param {import("./model.js").Model} model */
function screen(canvas, { width, height }) {
  Object.assign(canvas, { width, height });
  return context(canvas);
}
