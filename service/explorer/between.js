/** The way between two pictures, to be scrubbed along; beside it what mixing pixels would give. */

import { find, make } from "./dom.js";
import { nested } from "./model.js";
import { newestWins } from "./newest.js";
import { context, pngBlob } from "./pictures.js";
import { curl, literal, python, recipe } from "./recipe.js";

const FRAMES = 25;
const STRIP = 2; // every second one is shown as a thumbnail
const OFFERED = 6; // pictures to choose from, for each end

/** @typedef {import("./session.js").Encoded} Encoded */

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function between(panel, session) {
  const { model, signal } = session;
  const numbersMixed = screen(find(panel, "[data-is=numbers]", HTMLCanvasElement), model);
  const pixelsMixed = screen(find(panel, "[data-is=pixels]", HTMLCanvasElement), model);
  const strip = find(panel, "[data-is=strip]", HTMLCanvasElement);
  const scrubber = find(panel, "[name=way]", HTMLInputElement);
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

  const walk = newestWins(panel, signal, async () => {
    const [from, to] = chosen.map((index) => offered[index].latents);
    const latents = Array.from({ length: count }, (_, step) => {
      const share = step / (count - 1);
      return nested(from.map((number, dimension) => number + share * (to[dimension] - number)), model.shape);
    });
    const call = session.to({ path: "decode", json: { latents } });
    const { images } = await session.json(call);
    frames = await Promise.all(images.map((/** @type {string} */ image) => createImageBitmap(pngBlob(image))));
    film(strip, frames.filter((_, index) => index % STRIP === 0), model);
    show();
    showRecipe(
      [curl({ ...call, accept: "image/png" }, "between.png")],
      python(
        model.reference,
        [
          `start = np.array(${literal(nested(from, model.shape))}, np.float32)`,
          `end = np.array(${literal(nested(to, model.shape))}, np.float32)`,
          `images = client.decode(np.linspace([start], [end], ${count})[:, 0])`,
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
    chosen = chosen.map((index) => Math.min(index, offered.length - 1));
    [start, end].forEach((side, which) => {
      const choices = offered.map(({ url }, index) => choice(side, url, {
        name: picture && index === 0 ? "your picture" : `sample ${index + (picture ? 0 : 1)}`,
        checked: index === chosen[which],
        pick: () => { chosen[which] = index; walk(); },
      }));
      side.replaceChildren(find(side, "legend", HTMLLegendElement), ...choices);
    });
    if (offered.length > 1) walk();
  };

  scrubber.max = String(count - 1);
  scrubber.valueAsNumber = Math.floor(count / 2);
  scrubber.addEventListener("input", show, { signal });
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

/** Frames side by side. @param {HTMLCanvasElement} canvas @param {ImageBitmap[]} frames @param {import("./model.js").Model} model */
function film(canvas, frames, { width, height }) {
  Object.assign(canvas, { width: width * frames.length, height });
  const strip = context(canvas);
  frames.forEach((frame, index) => strip.drawImage(frame, index * width, 0));
}
