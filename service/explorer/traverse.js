/** Sliders for the latents with the highest KL, each below a strip of its effect. */

import { button, find, make } from "./dom.js";
import { nested, strongest } from "./model.js";
import { latestOnly } from "./latest.js";
import { film, pngBlob, showBlob } from "./pictures.js";
import { curl, literal, python, recipe } from "./recipe.js";

const COUNT = 8;
const REACH = 3;
const FARTHEST = 10; // the most that the service traverses; the latents of an unusual image may lie at several hundred
const STEPS = 9; // images in a strip

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function traverse(panel, session) {
  const { model, signal } = session;
  const picture = find(panel, "img", HTMLImageElement);
  const showRecipe = recipe(panel);
  /** @type {number[]} */
  let numbers = new Array(model.size).fill(0);

  const decode = latestOnly(panel, signal, async () => {
    const latents = [nested(numbers, model.shape)];
    const call = session.to({ path: "decode", json: { latents }, accept: "image/png" });
    showBlob(picture, await session.blob(call));
    showRecipe(
      [curl(call, "decoded.png")],
      python(
        model.reference,
        [`latents = np.array(${literal(latents)}, np.float32)`, "image = client.decode(latents)[0]", "print(image.shape)"],
        ["import numpy as np"],
      ),
    );
  });

  const traverseAll = latestOnly(panel, signal, async () => {
    const dimensions = sliders.map(({ dimension }) => dimension).join(",");
    const query = { dimensions, n: STEPS, extent: sliders[0].input.max };
    const json = { latents: [nested(numbers, model.shape)] };
    const { images } = await session.json(session.to({ path: "traverse", query, json }));
    const frames = await Promise.all(images.map((/** @type {string} */ image) => createImageBitmap(pngBlob(image))));
    sliders.forEach(({ strip }, row) => film(strip, frames.slice(row * STEPS, (row + 1) * STEPS), model));
  });

  const sliders = strongest(model, Math.min(COUNT, Math.floor(model.rows / STEPS) || 1)).map((dimension) => {
    const input = make("input", { type: "range", step: "0.05" });
    const output = make("output");
    const strip = make("canvas", { ariaHidden: "true", width: STEPS * model.width, height: model.height });
    const nats = model.kl.length ? make("small", { textContent: ` ${model.kl[dimension].toFixed(1)} nats` }) : "";
    input.addEventListener("input", () => {
      numbers[dimension] = input.valueAsNumber;
      output.textContent = input.valueAsNumber.toFixed(2);
      decode();
    }, { signal });
    input.addEventListener("change", () => traverseAll(), { signal });
    const name = make("span", {}, `Number ${dimension + 1}`, nats);
    return { dimension, input, output, strip, label: make("label", {}, strip, name, input, output) };
  });
  find(panel, ".sliders", HTMLElement).replaceChildren(...sliders.map(({ label }) => label));

  const begin = () => {
    numbers = [...(session.picture.value?.latents ?? numbers)];
    const farthest = Math.max(...sliders.map(({ dimension }) => Math.ceil(Math.abs(numbers[dimension]))));
    const reach = Math.min(FARTHEST, Math.max(REACH, farthest));
    for (const { dimension, input, output } of sliders) {
      Object.assign(input, { min: -reach, max: reach });
      input.valueAsNumber = numbers[dimension];
      output.textContent = numbers[dimension].toFixed(2);
    }
    decode();
    traverseAll();
  };
  button(panel, "reset").addEventListener("click", begin, { signal });
  session.picture.watch(begin);
}
