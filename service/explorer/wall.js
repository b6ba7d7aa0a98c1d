/** A wall of samples. */

import { button, find, make } from "./dom.js";
import { flat } from "./model.js";
import { newestWins } from "./newest.js";
import { dataUrl, pngBlob } from "./pictures.js";
import { python, recipe } from "./recipe.js";

const COUNT = 48;

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function wall(panel, session) {
  const { model, signal } = session;
  const form = find(panel, "form", HTMLFormElement);
  const seed = find(form, "[name=seed]", HTMLInputElement);
  const temperature = find(form, "[name=temperature]", HTMLInputElement);
  const list = find(panel, "ul", HTMLUListElement);
  const showRecipe = recipe(panel);

  const draw = newestWins(panel, signal, async () => {
    const n = Math.min(COUNT, model.rows);
    const query = { n, seed: seed.value, temperature: temperature.value };
    const answer = await session.json(session.to({ path: "sample", query: { ...query, return: "latents" } }));
    /** @type {string[]} */
    const images = answer.images;
    list.replaceChildren(...images.map((image, index) => frame(image, index, session)));
    session.samples.set(images.map((image, index) => ({ url: dataUrl(image), latents: flat(answer.latents[index]) })));
    showRecipe(
      session.to({ path: "sample", query, accept: "image/png" }),
      "samples.png",
      python(model.reference, [
        `samples = client.sample(${n}, seed=${seed.value}, temperature=${temperature.value})`,
        "print(samples.images.shape)",
      ]),
    );
  });

  form.addEventListener("submit", (event) => event.preventDefault(), { signal });
  form.addEventListener("input", () => {
    find(form, "output", HTMLOutputElement).value = temperature.value;
    if (form.reportValidity()) draw();
  }, { signal });
  button(form, "roll").addEventListener("click", () => {
    seed.value = String(Math.floor(Math.random() * 1e6));
    draw();
  }, { signal });
  draw();
}

/** @param {string} image @param {number} index @param {import("./session.js").Session} session */
function frame(image, index, session) {
  const picture = make("img", { className: "picture", src: dataUrl(image), alt: `Sample ${index + 1}` });
  const press = make("button", { type: "button", title: "Look at it more closely" }, picture);
  press.addEventListener("click", () => {
    session.chosen.set(pngBlob(image));
    document.getElementById("describe")?.scrollIntoView();
  });
  return make("li", {}, press);
}
