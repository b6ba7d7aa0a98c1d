/** The map of the latent space: thumbnails at their latents, and a probe that is decoded live. */

import { Thumbnails, hue } from "./thumbnails.js";
import { Camera } from "./camera.js";
import { button, find, make } from "./dom.js";
import { nested } from "./model.js";
import { latestOnly } from "./latest.js";
import { context, showBlob } from "./pictures.js";
import { Plane } from "./plane.js";
import { curl, literal, python, recipe } from "./recipe.js";

const MOST_LATENTS = 64; // more would make the map's answer megabytes, so the page then loads the plane alone
const STEP = 12; // pixels that an arrow key moves the probe by
const KEYS = /** @type {Record<string, [number, number]>} */ ({
  ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP],
});
const ZOOM = 1.5;
const CLOSE = 20; // pixels from a thumbnail at which it is enlarged
const ENLARGED = 84; // pixels

/** @param {HTMLElement} panel @param {import("./session.js").Session} session */
export function map(panel, session) {
  const { model, signal } = session;
  const found = find(panel, ".found", HTMLElement);
  const absent = find(panel, ".absent", HTMLElement);
  found.hidden = true;
  find(panel, ".recipe", HTMLElement).replaceChildren(); // from the model before
  absent.hidden = model.mapped;
  absent.textContent = `${model.reference} was published without a map. ` +
    "vae-train complete publishes a version with one.";
  if (!model.mapped) return;
  latestOnly(panel, signal, async () => {
    const [name, version] = model.reference.split("@");
    const path = `models/${name}/versions/${version}/map`;
    const query = /** @type {Record<string, string>} */ (model.size <= MOST_LATENTS ? { return: "latents" } : {});
    /** @type {import("./plane.js").LatentMap} */
    const answer = await session.json({ path, query });
    const sheet = await createImageBitmap(await session.blob({ path, accept: "image/png" }));
    found.hidden = false;
    open(panel, session, answer, new Thumbnails(sheet, answer, model));
  })();
}

/**
 * @param {HTMLElement} panel
 * @param {import("./session.js").Session} session
 * @param {import("./plane.js").LatentMap} answer
 * @param {Thumbnails} thumbnails
 */
function open(panel, session, answer, thumbnails) {
  const { model, signal } = session;
  const canvas = find(panel, "canvas", HTMLCanvasElement);
  const picture = find(panel, "img", HTMLImageElement);
  const pen = context(canvas);
  const plane = new Plane(answer);
  const camera = new Camera(plane.bounds);
  const darkness = matchMedia("(prefers-color-scheme: dark)");
  const names = answer.label_names ?? [];
  const showRecipe = recipe(panel);
  /** @type {Set<number>} highlighted labels; empty: all */
  const highlighted = new Set();
  let probe = plane.points[plane.nearest(camera.centre)];
  let drawing = false;
  let hovered = -1;

  const draw = () => {
    drawing = false;
    const sharp = devicePixelRatio;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (canvas.width !== Math.round(width * sharp)) canvas.width = Math.round(width * sharp);
    if (canvas.height !== Math.round(height * sharp)) canvas.height = Math.round(height * sharp);
    camera.size = { width, height };
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    pen.clearRect(0, 0, width, height);
    scatter(pen, camera, plane, thumbnails, highlighted);
    if (session.picture.value) ring(pen, camera.pixel(plane.place(session.picture.value.latents)), "5 4");
    ring(pen, camera.pixel(probe), "");
    if (hovered >= 0) enlarge(pen, camera, plane, thumbnails, hovered, names);
  };
  const redraw = () => {
    if (!drawing) requestAnimationFrame(draw);
    drawing = true;
  };

  const decode = latestOnly(panel, signal, async () => {
    const latents = [nested(plane.latents(probe), model.shape)];
    const call = session.to({ path: "decode", json: { latents }, accept: "image/png" });
    showBlob(picture, await session.blob(call));
    const label = answer.labels?.[plane.nearest(probe)] ?? -1;
    find(panel, "[data-is=nearest]", HTMLElement).textContent = label < 0 ? "" : `The nearest image is a “${names[label]}”.`;
    showRecipe(
      [curl(call, "decoded.png")],
      python(
        model.reference,
        [`latents = np.array(${literal(latents)}, np.float32)`, "image = client.decode(latents)[0]", "print(image.shape)"],
        ["import numpy as np"],
      ),
    );
  });
  const look = (/** @type {[number, number]} */ place) => {
    const { left, right, bottom, top } = plane.bounds;
    probe = [Math.min(right, Math.max(left, place[0])), Math.min(top, Math.max(bottom, place[1]))];
    redraw();
    decode();
  };
  const magnify = (/** @type {number} */ factor, pixel = camera.pixel(probe)) => {
    camera.magnify(factor, pixel);
    redraw();
  };

  listenToPointers(canvas, signal, {
    look: (pixel) => look(camera.place(pixel)),
    pan: (dx, dy) => { camera.pan(dx, dy); redraw(); },
    magnify,
    hover: (pixel) => {
      const nearest = pixel ? plane.nearest(camera.place(pixel)) : -1;
      const near = pixel && distance(camera.pixel(plane.points[nearest]), pixel) < CLOSE;
      if (hovered === (near ? nearest : -1)) return;
      hovered = near ? nearest : -1;
      redraw();
    },
    moves: () => find(panel, "[name=drag]:checked", HTMLInputElement).value === "move",
  });
  canvas.addEventListener("keydown", (event) => {
    if (KEYS[event.key]) {
      const [x, y] = camera.pixel(probe);
      const [dx, dy] = KEYS[event.key];
      look(camera.place([x + dx, y + dy]));
      camera.follow(probe);
    } else if (event.key === "+" || event.key === "=") magnify(ZOOM);
    else if (event.key === "-") magnify(1 / ZOOM);
    else return;
    event.preventDefault();
  }, { signal });
  button(panel, "nearer").addEventListener("click", () => magnify(ZOOM), { signal });
  button(panel, "farther").addEventListener("click", () => magnify(1 / ZOOM), { signal });
  button(panel, "whole").addEventListener("click", () => { camera.reset(); redraw(); }, { signal });
  const tint = () => {
    thumbnails.tint(darkness.matches);
    legend(find(panel, ".legend", HTMLElement), names, darkness.matches, highlighted, redraw);
    redraw();
  };
  darkness.addEventListener("change", tint, { signal });
  session.picture.watch(redraw);
  const watcher = new ResizeObserver(redraw);
  watcher.observe(canvas);
  signal.addEventListener("abort", () => watcher.disconnect());

  const share = answer.variance.reduce((a, b) => a + b);
  find(panel, "[data-is=share]", HTMLElement).textContent =
    `The two directions of this map explain ${Math.round(100 * share)} % of the variance of the latents.`;
  tint();
  decode();
}

/**
 * Draw thumbnails where there is room, and dots for the others. Highlighted ones come first.
 * @param {CanvasRenderingContext2D} pen
 * @param {Camera} camera
 * @param {Plane} plane
 * @param {Thumbnails} thumbnails
 * @param {Set<number>} highlighted
 */
function scatter(pen, camera, plane, thumbnails, highlighted) {
  const { width, height } = camera.size;
  const room = plane.spacing * camera.scale; // for each of a few images; many share spots of 22 pixels
  const side = Math.min(56, Math.max(room, 22 * Math.sqrt(Math.max(1, camera.zoom))));
  const taken = new Set();
  const dim = (/** @type {number} */ index) => highlighted.size > 0 && !highlighted.has(thumbnails.labels[index]);
  const order = plane.points.map((_, index) => index).sort((a, b) => Number(dim(a)) - Number(dim(b)));
  for (const index of order) {
    const [x, y] = camera.pixel(plane.points[index]);
    if (x < -side || y < -side || x > width + side || y > height + side) continue;
    pen.globalAlpha = dim(index) ? 0.15 : 1;
    const spot = `${Math.round(x / side)} ${Math.round(y / side)}`;
    if (!taken.has(spot)) {
      taken.add(spot);
      thumbnails.draw(pen, index, x, y, side);
    } else {
      pen.globalAlpha *= 0.35;
      pen.fillStyle = hue(thumbnails.labels[index], thumbnails.count, Boolean(thumbnails.dark));
      pen.fillRect(x - 1, y - 1, 2, 2);
    }
  }
  pen.globalAlpha = 1;
}

/**
 * Draw one thumbnail enlarged, with its label.
 * @param {CanvasRenderingContext2D} pen
 * @param {Camera} camera
 * @param {Plane} plane
 * @param {Thumbnails} thumbnails
 * @param {number} index
 * @param {string[]} names of the labels
 */
function enlarge(pen, camera, plane, thumbnails, index, names) {
  const [x, y] = camera.pixel(plane.points[index]);
  const name = names[thumbnails.labels[index]] ?? "";
  const [width, height] = [ENLARGED + 12, ENLARGED + (name ? 32 : 12)];
  const left = Math.min(Math.max(4, x - width / 2), camera.size.width - width - 4);
  const top = y - height - 22 < 4 ? y + 22 : y - height - 22;
  const style = getComputedStyle(pen.canvas);
  pen.fillStyle = style.getPropertyValue("--paper");
  pen.strokeStyle = style.getPropertyValue("--edge");
  pen.lineWidth = 1;
  pen.beginPath();
  pen.roundRect(left, top, width, height, 6);
  pen.fill();
  pen.stroke();
  pen.imageSmoothingEnabled = thumbnails.smooth;
  thumbnails.draw(pen, index, left + width / 2, top + 6 + ENLARGED / 2, ENLARGED);
  pen.imageSmoothingEnabled = true;
  pen.fillStyle = style.getPropertyValue("--ink");
  pen.font = `14px ${style.fontFamily}`;
  pen.textAlign = "center";
  pen.fillText(name, left + width / 2, top + ENLARGED + 24, ENLARGED);
}

/** @param {[number, number]} a @param {[number, number]} b */
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

/** @param {CanvasRenderingContext2D} pen @param {[number, number]} pixel @param {string} dashes */
function ring(pen, [x, y], dashes) {
  const style = getComputedStyle(pen.canvas);
  pen.setLineDash(dashes ? dashes.split(" ").map(Number) : []);
  for (const [width, colour] of /** @type {[number, string][]} */ ([[6, "--paper"], [2.5, "--ink"]])) {
    pen.lineWidth = width;
    pen.strokeStyle = style.getPropertyValue(colour);
    pen.beginPath();
    pen.arc(x, y, 14, 0, 2 * Math.PI);
    pen.stroke();
  }
  pen.setLineDash([]);
}

/**
 * The labels as buttons that highlight their images.
 * @param {HTMLElement} place
 * @param {string[]} names
 * @param {boolean} dark
 * @param {Set<number>} highlighted
 * @param {() => void} changed
 */
function legend(place, names, dark, highlighted, changed) {
  place.replaceChildren(...names.map((name, label) => {
    const spot = make("span", { className: "spot" });
    spot.style.background = hue(label, names.length, dark);
    const press = make("button", { type: "button", ariaPressed: String(highlighted.has(label)) }, spot, name);
    press.addEventListener("click", () => {
      if (!highlighted.delete(label)) highlighted.add(label);
      press.ariaPressed = String(highlighted.has(label));
      changed();
    });
    return press;
  }));
}

/**
 * Handle pointers: one looks or pans, two pan and zoom. The wheel with Ctrl, which a trackpad sends for a pinch, zooms.
 * @param {HTMLCanvasElement} canvas
 * @param {AbortSignal} signal
 * @param {{
 *   look: (pixel: [number, number]) => void,
 *   pan: (dx: number, dy: number) => void,
 *   magnify: (factor: number, pixel: [number, number]) => void,
 *   hover: (pixel: [number, number] | undefined) => void,
 *   moves: () => boolean,
 * }} act
 */
function listenToPointers(canvas, signal, { look, pan, magnify, hover, moves }) {
  /** @type {Map<number, [number, number]>} */
  const down = new Map();
  const pixel = (/** @type {MouseEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    return /** @type {[number, number]} */ ([event.clientX - box.left, event.clientY - box.top]);
  };
  const middle = () => {
    const all = [...down.values()];
    const [x, y] = [0, 1].map((axis) => all.reduce((sum, each) => sum + each[axis], 0) / all.length);
    const spread = Math.hypot(all[0][0] - x, all[0][1] - y);
    return { x, y, spread };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, pixel(event));
    hover(undefined);
    if (down.size === 1 && !moves() && !event.shiftKey) look(pixel(event));
  }, { signal });
  canvas.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) {
      hover(pixel(event));
      return;
    }
    const before = middle();
    down.set(event.pointerId, pixel(event));
    const after = middle();
    if (down.size === 1 && !moves() && !event.shiftKey) {
      look(pixel(event));
      return;
    }
    pan(after.x - before.x, after.y - before.y);
    if (down.size === 2 && before.spread > 0) magnify(after.spread / before.spread, [after.x, after.y]);
  }, { signal });
  for (const end of /** @type {const} */ (["pointerup", "pointercancel"])) {
    canvas.addEventListener(end, (event) => down.delete(event.pointerId), { signal });
  }
  canvas.addEventListener("pointerleave", () => hover(undefined), { signal });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    magnify(Math.exp(-event.deltaY / 200), pixel(event));
  }, { signal, passive: false });
}
