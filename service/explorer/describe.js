/** An image, its latents, reconstruction and scores. */

import { Bars } from "./bars.js";
import { button, find, make } from "./dom.js";
import { flat } from "./model.js";
import { latestOnly } from "./latest.js";
import { brightened, dataUrl, pngBlob, showBlob, toBase64 } from "./pictures.js";
import { curl, literal, python, recipe, saved } from "./recipe.js";
import { Sketch } from "./sketch.js";

const UNUSUAL = 0.05; // the false positive rate, by default the same in /score
const BRIGHTEST = 8; // times brighter than it is; more would show rounding errors

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function describe(panel, session) {
  const { model, signal } = session;
  const easel = find(panel, "#easel", HTMLCanvasElement);
  const bars = new Bars(find(panel, "svg", SVGSVGElement), model);
  const reconstruction = find(panel, "[data-is=reconstruction]", HTMLImageElement);
  const error = find(panel, "[data-is=error]", HTMLImageElement);
  const unusual = find(panel, "[data-is=unusual]", HTMLImageElement);
  const facts = find(panel, ".facts", HTMLElement);
  const colour = find(panel, "input[type=color]", HTMLInputElement);
  const pick = button(panel, "pick");
  const file = find(panel, "#file", HTMLInputElement);
  const showRecipe = recipe(panel);
  let seed = 3;

  /** Show the error as bright as it goes, and say how large it is. @param {string} base64 a grey PNG */
  const showError = async (base64) => {
    const { url, white } = brightened(await createImageBitmap(pngBlob(base64)), BRIGHTEST);
    error.src = url;
    find(panel, "[data-is=white]", HTMLElement).textContent = `; white is ${Math.round((100 * white) / 255)} %`;
  };

  /** @type {(source: File | Blob) => Promise<void>} */
  const look = latestOnly(panel, signal, async (source) => {
    const named = source instanceof File;
    const name = named ? source.name : source.type === "image/jpeg" ? "picture.jpg" : "picture.png";
    const file = named ? source : new File([source], name, { type: source.type });
    const encoded = await session.json(session.to({ path: "encode", file }));
    const scoring = session.to(
      model.scored
        ? { path: "score", query: { seed: 0, return: "images,error_map" }, file }
        : { path: "reconstruct", file },
    );
    const answer = await session.json(scoring);
    const latents = flat(encoded.mean[0]);
    bars.show(latents);
    reconstruction.src = dataUrl(answer.images[0]);
    find(panel, "[data-for=error]", HTMLElement).hidden = !answer.error_map;
    if (answer.error_map) await showError(answer.error_map[0]);
    find(panel, "[data-for=unusual]", HTMLElement).hidden = !answer.local;
    if (answer.local) {
      const drawing = session.to({ path: "score", query: { seed: 0 }, file, accept: "image/png" });
      showBlob(unusual, await session.blob(drawing));
    }
    facts.replaceChildren(...explain(answer));
    session.picture.set({ url: easel.toDataURL(), latents });
    const base64 = named ? "" : await toBase64(source);
    showRecipe(
      [
        ...(named ? [] : [saved(name, base64)]),
        curl(session.to({ path: "encode", file })),
        curl(session.to({ path: "reconstruct", file, accept: "image/png" }), "reconstruction.png"),
        ...(model.scored ? [curl(session.to({ path: "score", query: { seed: 0 }, file }))] : []),
      ],
      python(
        model.reference,
        [
          `image = ${named ? literal(name) : `base64.b64decode(${literal(base64)})`}`,
          "latents = client.encode(image).mean",
          "reconstruction = client.reconstruct(image)",
          "print(latents, reconstruction.error, reconstruction.images.shape)",
          ...(model.scored ? ["print(client.score(image, seed=0))"] : []),
        ],
        named ? [] : ["import base64"],
      ),
    );
  });

  const drawn = latestOnly(panel, signal, async () => look(await sketch.blob()));
  const sketch = new Sketch(easel, model, signal, drawn, () => {
    colour.value = sketch.ink;
    pick.ariaPressed = "false";
  });

  const show = latestOnly(panel, signal, async (/** @type {File | Blob} */ source, fromModel = false) => {
    let picture;
    try {
      picture = await createImageBitmap(source);
    } catch {
      picture = undefined; // the service may read formats that this browser does not, and reports the others
    }
    if (picture) sketch.show(picture);
    if (fromModel && !session.picture.value) { // later ones leave the pen that the user chose
      sketch.learnColours();
      colour.value = sketch.ink;
    }
    const tooLarge = picture && picture.width * picture.height > model.pixels; // as cameras make them
    await look(tooLarge ? await sketch.blob() : source);
  });
  const sample = latestOnly(panel, signal, async () => {
    const query = { n: 1, seed };
    await show(await session.blob(session.to({ path: "sample", query, accept: "image/png" })), true);
  });

  colour.addEventListener("input", () => { sketch.ink = colour.value; }, { signal });
  pick.ariaPressed = "false";
  pick.addEventListener("click", () => {
    sketch.picking = !sketch.picking;
    pick.ariaPressed = String(sketch.picking);
  }, { signal });
  file.addEventListener("change", () => {
    const [picked] = file.files ?? [];
    if (picked) show(picked);
    file.value = ""; // so that the same file can be selected again
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
    document.addEventListener(kind, (event) => { // anywhere on the page, because the browser would open the file instead
      event.preventDefault();
      easel.classList.toggle("over", over);
    }, { signal });
  }
  document.addEventListener("drop", (event) => {
    const dropped = event.dataTransfer?.files[0];
    if (!dropped) return;
    easel.scrollIntoView({ block: "nearest" });
    show(dropped);
  }, { signal });
  session.chosen.watch((blob) => show(blob));

  sample();
}

/** The answer of /score or /reconstruct in words. @param {any} answer */
function explain({ model, error, elbo, distortion, rate, p_value: p, p_local: local, where }) {
  const facts = [];
  if (p) {
    const share = (100 * p[0]).toPrecision(2).replace(/\.0$/, "");
    facts.push(fact("p-value", p[0].toPrecision(2), p[0] > UNUSUAL
      ? `ordinary: ${share} % of the validation images are at least as unusual`
      : `an anomaly: only ${share} % of the validation images are as unusual`));
  }
  if (local) {
    const [left, top, right, bottom] = where[0];
    facts.push(fact("Most unusual place", `${left}–${right - 1}, ${top}–${bottom - 1}`,
      `columns and rows of the picture, with a p-value of ${local[0].toPrecision(2)}`));
  }
  if (elbo) {
    facts.push(fact("Score", `${whole(elbo[0])} nats`,
      `the ELBO: ${whole(-distortion[0])} for the distortion, ${whole(-rate[0])} for the rate`));
  }
  facts.push(fact("Squared error", error[0].toPrecision(2), "the mean over all pixels, which lie between 0 and 1"));
  if (elbo && !p) facts.push(fact("p-value", "none", `${model} was published without a calibration`));
  return facts;
}

/** @param {number} nats @returns {string} for instance −47,709 */
const whole = (nats) => nats.toLocaleString("en", { maximumFractionDigits: 0 }).replace("-", "−");

/** @param {string} name @param {string} value @param {string} meaning */
function fact(name, value, meaning) {
  const description = make("dd", {}, value, make("small", { textContent: meaning }));
  return make("div", {}, make("dt", { textContent: name }), description);
}
