/** The page: the list of models, and the panels of the selected one. */

import { Problem, send, setApiKey, UNAUTHORIZED } from "./api.js";
import { describe } from "./describe.js";
import { find, make, trouble } from "./dom.js";
import { interpolate } from "./interpolate.js";
import { map } from "./map.js";
import * as models from "./model.js";
import { samples } from "./samples.js";
import { Session } from "./session.js";
import { traverse } from "./traverse.js";
import { walk } from "./walk.js";

const PANELS = { walk, map, describe, traverse, samples, interpolate };

const choice = find(document, "#model", HTMLSelectElement);
const keyForm = find(document, "#key", HTMLFormElement);
let session = new AbortController();

/** Fill the list of models and open the first. Try again while the service is loading. */
async function start() {
  try {
    const { models: loaded } = await (await send({ path: "models" })).json();
    loaded.sort((/** @type {any} */ a, /** @type {any} */ b) => Number(b.default) - Number(a.default));
    choice.replaceChildren(
      ...loaded.flatMap((/** @type {any} */ { name, versions }) =>
        versions.toReversed().map((/** @type {number} */ version) =>
          make("option", { textContent: `${name}@${version}`, value: `models/${name}/versions/${version}` }))),
    );
    trouble(document, "");
    await open();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    trouble(document, error.message);
    if (error.status === 503) setTimeout(start, 1000 * Math.max(1, error.wait));
  }
}

/** Show the selected model, and end everything of the model before. */
async function open() {
  session.abort();
  session = new AbortController();
  const { signal } = session;
  const model = models.describe(await (await send({ path: choice.value }, signal)).json());
  const { style } = document.documentElement;
  style.setProperty("--aspect", `${model.width} / ${model.height}`);
  style.setProperty("--rendering", model.smooth ? "auto" : "pixelated");
  const kind = model.channels === 1 ? "grey" : "colour";
  for (const only of ["grey", "colour"]) {
    for (const each of document.querySelectorAll(`[data-only=${only}]`)) each.toggleAttribute("hidden", only !== kind);
  }
  for (const place of document.querySelectorAll("[data-of=size]")) place.textContent = String(model.size);
  find(document, "#about", HTMLElement).textContent =
    `${model.reference}: images of ${model.width} × ${model.height}${model.channels === 3 ? " in colour" : ""}, ` +
    `${model.size} numbers each.`;
  const shared = new Session(model, signal);
  for (const [id, panel] of Object.entries(PANELS)) panel(find(document, `#${id}`, HTMLElement), shared);
}

choice.addEventListener("change", () => {
  open().catch((error) => {
    if (error instanceof Problem) trouble(document, error.message);
    else if (error.name !== "AbortError") throw error;
  });
});
addEventListener(UNAUTHORIZED, () => { keyForm.hidden = false; });
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(find(keyForm, "input", HTMLInputElement).value);
  keyForm.hidden = true;
  start();
});

start();
