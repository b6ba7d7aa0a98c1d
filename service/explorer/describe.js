/** A picture, what the model makes of it, and how well it knows such pictures. */

import { Bars } from "./bars.js";
import { button, find, make } from "./dom.js";
import { flat } from "./model.js";
import { newestWins } from "./newest.js";
import { dataUrl, toBase64 } from "./pictures.js";
import { curl, literal, python, recipe, saved } from "./recipe.js";
import { Sketch } from "./sketch.js";

const DRAWN = "picture.png"; // the file of what has no name yet
const UNUSUAL = 0.05; // the share of ordinary pictures that may be taken for anomalies, as /score has it

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function describe(panel, session) {
  const { model, signal } = session;
  const easel = find(panel, "#easel", HTMLCanvasElement);
  const bars = new Bars(find(panel, "svg", SVGSVGElement), model);
  const reconstruction = find(panel, "[data-is=reconstruction]", HTMLImageElement);
  const error = find(panel, "[data-is=error]", HTMLImageElement);
  const facts = find(panel, ".facts", HTMLElement);
  const colour = find(panel, "input[type=color]", HTMLInputElement);
  const file = find(panel, "#file", HTMLInputElement);
  const showRecipe = recipe(panel);
  let seed = 3;

  /** @type {(source: File | Blob) => Promise<void>} */
  const look = newestWins(panel, signal, async (source) => {
    const named = source instanceof File;
    const file = named ? source : new File([source], DRAWN, { type: source.type });
    const encoded = await session.json(session.to({ path: "encode", file }));
    const judged = session.to(
      model.scored
        ? { path: "score", query: { seed: 0, return: "images,error_map" }, file }
        : { path: "reconstruct", file },
    );
    const answer = await session.json(judged);
    const latents = flat(encoded.mean[0]);
    bars.show(latents);
    reconstruction.src = dataUrl(answer.images[0]);
    find(panel, "[data-for=error]", HTMLElement).hidden = !answer.error_map;
    if (answer.error_map) error.src = dataUrl(answer.error_map[0]);
    facts.replaceChildren(...judgement(answer));
    session.picture.set({ url: easel.toDataURL(), latents });
    const base64 = named ? "" : await toBase64(source);
    showRecipe(
      [
        ...(named ? [] : [saved(DRAWN, base64)]),
        curl(session.to({ path: "encode", file })),
        curl(session.to({ path: "reconstruct", file, accept: "image/png" }), "reconstruction.png"),
        ...(model.scored ? [curl(session.to({ path: "score", query: { seed: 0 }, file }))] : []),
      ],
      python(
        model.reference,
        [
          `image = ${named ? literal(source.name) : `base64.b64decode(${literal(base64)})`}`,
          "numbers = client.encode(image).mean",
          "again = client.reconstruct(image)",
          "print(numbers, again.error, again.images.shape)",
          ...(model.scored ? ["print(client.score(image, seed=0))"] : []),
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
    document.addEventListener(kind, (event) => { // wherever it falls: the browser would leave the page for it
      event.preventDefault();
      easel.classList.toggle("over", over);
    }, { signal });
  }
  document.addEventListener("drop", (event) => {
    const dropped = event.dataTransfer?.files[0];
    if (dropped) show(dropped);
  }, { signal });
  session.chosen.watch((blob) => show(blob));

  sample();
}

/** What /score or /reconstruct found out of the one image, in words. @param {any} answer */
function judgement({ model, error, elbo, distortion, rate, p_value: p }) {
  const facts = [];
  if (p) {
    const share = (100 * p[0]).toPrecision(2).replace(/\.0$/, "");
    facts.push(fact("p-value", p[0].toPrecision(2), p[0] > UNUSUAL
      ? `an ordinary picture: ${share} % of those it was tested on are as strange or stranger`
      : `an anomaly: only ${share} % of those it was tested on are as strange`));
  }
  if (elbo) {
    facts.push(fact("Score", `${elbo[0].toFixed(0)} nats`,
      `the ELBO: ${distortion[0].toFixed(0)} for what got lost, ${rate[0].toFixed(0)} for the numbers`));
  }
  facts.push(fact("Squared error", error[0].toFixed(4), "of a pixel between 0 and 1, on average"));
  if (elbo && !p) facts.push(fact("p-value", "none", `${model} was published without a calibration`));
  return facts;
}

/** @param {string} name @param {string} value @param {string} meaning */
function fact(name, value, meaning) {
  const told = make("dd", {}, value, make("small", { textContent: meaning }));
  return make("div", {}, make("dt", { textContent: name }), told);
}
