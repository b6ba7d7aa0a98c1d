/** Image files between the service, <img> and <canvas>. */

import { make } from "./dom.js";

/** @param {string} base64 a PNG from a JSON answer */
export const dataUrl = (base64) => `data:image/png;base64,${base64}`;

/** @param {string} base64 @returns {Blob} */
export function pngBlob(base64) {
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type: "image/png" });
}

/** @param {Blob} blob @returns {Promise<string>} its bytes in base64 */
export async function toBase64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @param {HTMLImageElement} image @param {Blob} blob is shown, and released when another replaces it */
export function showBlob(image, blob) {
  const before = image.src;
  image.src = URL.createObjectURL(blob);
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
}

/**
 * Make the brightest level of a grey image white, and brighten the others in proportion.
 * @param {ImageBitmap} image
 * @param {number} most times brighter
 * @returns {{ url: string, white: number }} the image, and the level that is white now, 0…255
 */
export function brightened(image, most) {
  const canvas = make("canvas", { width: image.width, height: image.height });
  const pen = context(canvas);
  pen.drawImage(image, 0, 0);
  const pixels = pen.getImageData(0, 0, image.width, image.height);
  const { data } = pixels;
  let white = 255 / most;
  for (let at = 0; at < data.length; at += 4) white = Math.max(white, data[at]);
  for (let at = 0; at < data.length; at += 4) data.fill((255 * data[at]) / white, at, at + 3);
  pen.putImageData(pixels, 0, 0);
  return { url: canvas.toDataURL(), white };
}

/** Draw images side by side. @param {HTMLCanvasElement} canvas @param {ImageBitmap[]} frames @param {{ width: number, height: number }} size of one */
export function film(canvas, frames, { width, height }) {
  Object.assign(canvas, { width: width * frames.length, height });
  const strip = context(canvas);
  frames.forEach((frame, index) => strip.drawImage(frame, index * width, 0));
}

/** @param {HTMLCanvasElement} canvas */
export function context(canvas) {
  const found = canvas.getContext("2d", { willReadFrequently: true });
  if (!found) throw new Error("this browser has no 2-D canvas");
  return found;
}
