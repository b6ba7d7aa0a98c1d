/** A picture, what the model makes of it, and how well it knows such pictures. */

import { Bars } from "./bars.js";
import { button, find, make } from "./dom.js";
import { flat } from "./model.js";
import { newestWins } from "./newest.js";
import { dataUrl, toBase64 } from "./pictures.js";
import { literal, python, recipe } from "./recipe.js";
import { Sketch } from "./sketch.js";

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function describe(panel, session) {
  const { model, signal } = session;
  const easel = find(panel, "#easel", HTMLCanvasElement);
  const bars = new Bars(find(panel, "svg", SVGSVGElement), model);
  const reconstruction = find(panel, "[data-is=reconstruction]", HTMLImageElement);
  const facts = find(panel, ".facts", HTMLElement);
  const colour = find(panel, "input[type=color]", HTMLInputElement);
  const file = find(panel, "#file", HTMLInputElement);
  const showRecipe = recipe(panel);
  let seed = 3;

  /** @type {(source: File | Blob) => Promise<void>} */
  const look = newestWins(panel, signal, async (source) => {
    // A file goes as it is, so that the service fits it; a drawing goes in JSON, so that it can be copied.
    const named = source instanceof File;
    const base64 = named ? "" : await toBase64(source);
    const body = named ? { file: source } : { json: { images: [base64] } };
    const encoded = await session.json(session.to({ path: "encode", ...body }));
    const again = await session.json(session.to({ path: "reconstruct", ...body }));
    const latents = flat(encoded.mean[0]);
    bars.show(latents);
    reconstruction.src = dataUrl(again.images[0]);
    facts.replaceChildren(fact("Squared error", again.error[0].toFixed(4)));
    session.picture.set({ url: easel.toDataURL(), latents });
    showRecipe(
      session.to({ path: "reconstruct", ...body, accept: "image/png" }),
      "reconstruction.png",
      python(
        model.reference,
        [
          `image = ${named ? literal(source.name) : `base64.b64decode(${literal(base64)})`}`,
          "numbers = client.encode(image).mean",
          "again = client.reconstruct(image)",
          "print(numbers, again.error, again.images.shape)",
        ],
        named ? [] : ["import base64"],
      ),
    );
  });

  const drawn = newestWins(panel, signal, async () => look(await sketch.blob()));
  const sketch = new Sketch(easel, model, signal, drawn);

  const show = newestWins(panel, signal, async (/** @type {File | Blob} */ source, ours = false) => {
    let picture;
    try {
      picture = await createImageBitmap(source);
    } catch {
      picture = undefined; // the service reads formats that this browser may not, and says so otherwise
    }
    if (picture) sketch.show(picture);
    if (ours) sketch.learnColours();
    await look(source);
  });
  const sample = newestWins(panel, signal, async () => {
    const query = { n: 1, seed };
    await show(await session.blob(session.to({ path: "sample", query, accept: "image/png" })), true);
  });

  find(panel, "[data-for=colour]", HTMLElement).hidden = model.channels === 1;
  colour.addEventListener("input", () => { sketch.ink = colour.value; }, { signal });
  file.addEventListener("change", () => {
    const [picked] = file.files ?? [];
    if (picked) show(picked);
    file.value = ""; // the same file can be chosen again
  }, { signal });
  button(panel, "clear").addEventListener("click", () => {
    sketch.clear();
    drawn();
  }, { signal });
  button(panel, "another").addEventListener("click", () => {
    seed += 1;
    sample();
  }, { signal });
  for (const [kind, over] of /** @type {[keyof HTMLElementEventMap, boolean][]} */ (
    [["dragover", true], ["dragleave", false], ["drop", false]]
  )) {
    panel.addEventListener(kind, (event) => {
      event.preventDefault();
      easel.classList.toggle("over", over);
    }, { signal });
  }
  panel.addEventListener("drop", (event) => {
    const dropped = event.dataTransfer?.files[0];
    if (dropped) show(dropped);
  }, { signal });
  session.chosen.watch((blob) => show(blob));

  sample();
}

/** @param {string} name @param {string} value */
function fact(name, value) {
  return make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }));
}
