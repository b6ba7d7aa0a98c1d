/** The opening animation: a walk from sample to sample, with the latents. */

import { Bars } from "./bars.js";
import { button, find, trouble } from "./dom.js";
import { flat, nested } from "./model.js";
import { latestOnly } from "./latest.js";
import { context, pngBlob } from "./pictures.js";

const STOPS = 8;
const STEPS = 14; // frames from one stop to the next
const FRAME = 85; // milliseconds
const REST = 9; // frames at a stop

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function walk(panel, session) {
  const { model, signal } = session;
  const canvas = find(panel, "canvas", HTMLCanvasElement);
  const bars = new Bars(find(panel, "svg", SVGSVGElement), model);
  const pause = button(panel, "pause");
  /** @type {{ numbers: number[], picture: ImageBitmap }[]} */
  let frames = [];
  let [at, next] = [0, 0];
  let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const show = () => {
    if (!frames.length) return;
    const { numbers, picture } = frames[at];
    bars.show(numbers);
    context(canvas).drawImage(picture, 0, 0);
  };
  const label = () => {
    pause.textContent = paused ? "Play" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
  };
  const tick = (/** @type {number} */ now) => {
    if (signal.aborted) return;
    if (!paused && frames.length && now >= next) {
      at = (at + 1) % frames.length;
      next = now + FRAME * (at % STEPS ? 1 : REST);
      show();
    }
    requestAnimationFrame(tick);
  };

  pause.addEventListener("click", () => {
    paused = !paused;
    label();
  }, { signal });

  const load = latestOnly(panel, signal, async () => {
    const stops = Math.min(STOPS, Math.floor(model.rows / STEPS)) || 1;
    const query = { n: stops, seed: 2, temperature: 0.8, return: "latents" };
    const samples = await session.json(session.to({ path: "sample", query }));
    const route = path(samples.latents.map(flat));
    const json = { latents: route.map((numbers) => nested(numbers, model.shape)) };
    const decoded = await session.json(session.to({ path: "decode", json }));
    const pictures = await Promise.all(
      decoded.images.map((/** @type {string} */ image) => createImageBitmap(pngBlob(image))),
    );
    frames = route.map((numbers, index) => ({ numbers, picture: pictures[index] }));
    show();
  });

  canvas.width = model.width;
  canvas.height = model.height;
  label();
  trouble(panel, "");
  load();
  requestAnimationFrame(tick);
}

/** A round trip through the stops, slower near each. @param {number[][]} stops @returns {number[][]} */
function path(stops) {
  return stops.flatMap((from, index) => {
    const to = stops[(index + 1) % stops.length];
    return Array.from({ length: STEPS }, (_, step) => {
      const share = (1 - Math.cos((Math.PI * step) / STEPS)) / 2;
      return from.map((number, dimension) => number + share * (to[dimension] - number));
    });
  });
}
