/** A grid of samples from the prior. */

import { button, find, make } from "./dom.js";
import { flat } from "./model.js";
import { latestOnly } from "./latest.js";
import { dataUrl, pngBlob } from "./pictures.js";
import { curl, literal, python, recipe } from "./recipe.js";

const COUNT = 48;

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function samples(panel, session) {
  const { model, signal } = session;
  const form = find(panel, "form", HTMLFormElement);
  const seed = find(form, "[name=seed]", HTMLInputElement);
  const temperature = find(form, "[name=temperature]", HTMLInputElement);
  const choices = [
    { name: "label", values: model.labels },
    { name: "prior", values: model.priors },
  ].map(({ name, values }) => {
    const select = find(form, `[name=${name}]`, HTMLSelectElement);
    find(form, `[data-for=${name}]`, HTMLElement).hidden = !values.length;
    const [unset] = select.options;
    select.replaceChildren(unset, ...values.map((value) => make("option", { value, textContent: value })));
    select.value = "";
    return { name, select };
  });
  const list = find(panel, "ul", HTMLUListElement);
  const showRecipe = recipe(panel);

  const chosen = () => Object.fromEntries(
    choices.filter(({ select }) => select.value).map(({ name, select }) => [name, select.value]),
  );

  const draw = latestOnly(panel, signal, async () => {
    const n = Math.min(COUNT, model.rows);
    const query = { n, seed: seed.value, temperature: temperature.value, ...chosen() };
    const answer = await session.json(session.to({ path: "sample", query: { ...query, return: "latents" } }));
    /** @type {string[]} */
    const images = answer.images;
    list.replaceChildren(...images.map((image, index) => frame(image, index, session)));
    session.samples.set(images.map((image, index) => ({ url: dataUrl(image), latents: flat(answer.latents[index]) })));
    showRecipe(
      [curl(session.to({ path: "sample", query, accept: "image/png" }), "samples.png")],
      python(model.reference, [
        `samples = client.sample(${n}, seed=${seed.value}, temperature=${temperature.value}${named(chosen())})`,
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

/** The selected options as Python arguments. @param {Record<string, string>} choices */
const named = (choices) => Object.entries(choices).map(([name, value]) => `, ${name}=${literal(value)}`).join("");

/** @param {string} image @param {number} index @param {import("./session.js").Session} session */
function frame(image, index, session) {
  const picture = make("img", { className: "picture", src: dataUrl(image), alt: `Sample ${index + 1}` });
  const press = make("button", { type: "button", title: "Describe this image" }, picture);
  press.addEventListener("click", () => {
    session.chosen.set(pngBlob(image));
    document.getElementById("describe")?.scrollIntoView();
  });
  return make("li", {}, press);
}
