/** Sliders for the numbers that carry most; the picture follows. */

import { button, find, make } from "./dom.js";
import { nested, strongest } from "./model.js";
import { newestWins } from "./newest.js";
import { showBlob } from "./pictures.js";
import { curl, literal, python, recipe } from "./recipe.js";

const COUNT = 8;
const REACH = 3;

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function knobs(panel, session) {
  const { model, signal } = session;
  const picture = find(panel, "img", HTMLImageElement);
  const showRecipe = recipe(panel);
  /** @type {number[]} */
  let numbers = new Array(model.size).fill(0);

  const decode = newestWins(panel, signal, async () => {
    const latents = [nested(numbers, model.shape)];
    const call = session.to({ path: "decode", json: { latents }, accept: "image/png" });
    showBlob(picture, await session.blob(call));
    showRecipe(
      [curl(call, "decoded.png")],
      python(
        model.reference,
        [`numbers = np.array(${literal(latents)}, np.float32)`, "image = client.decode(numbers)[0]", "print(image.shape)"],
        ["import numpy as np"],
      ),
    );
  });

  const sliders = strongest(model, COUNT).map((dimension) => {
    const input = make("input", { type: "range", step: "0.05" });
    const output = make("output");
    const nats = model.kl.length ? make("small", { textContent: ` ${model.kl[dimension].toFixed(1)} nats` }) : "";
    input.addEventListener("input", () => {
      numbers[dimension] = input.valueAsNumber;
      output.textContent = input.valueAsNumber.toFixed(2);
      decode();
    }, { signal });
    return { dimension, input, output, label: make("label", {}, make("span", {}, `Number ${dimension + 1}`, nats), input, output) };
  });
  find(panel, ".sliders", HTMLElement).replaceChildren(...sliders.map(({ label }) => label));

  const begin = () => {
    numbers = [...(session.picture.value?.latents ?? numbers)];
    for (const { dimension, input, output } of sliders) {
      const reach = Math.max(REACH, Math.ceil(Math.abs(numbers[dimension])));
      Object.assign(input, { min: -reach, max: reach });
      input.valueAsNumber = numbers[dimension];
      output.textContent = numbers[dimension].toFixed(2);
    }
    decode();
  };
  button(panel, "reset").addEventListener("click", begin, { signal });
  session.picture.watch(begin);
}
