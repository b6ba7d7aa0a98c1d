/** Image files between the service, <img> and <canvas>. */

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
