/** The properties of a model that the page uses. */

/**
 * @typedef {object} Model
 * @property {string} reference name@version
 * @property {number} height of its images
 * @property {number} width
 * @property {number} channels 1 or 3
 * @property {"contain" | "cover" | "stretch"} fit how the service fits other images to this size
 * @property {boolean} smooth whether its images are shown smoothed
 * @property {number[]} shape of the latents of one image
 * @property {number} size number of latents of one image
 * @property {number[]} kl mean KL of each latent in nats; empty if not measured
 * @property {string[]} labels names of the classes; may be empty
 * @property {string[]} priors to select from, the default first; empty with only one
 * @property {boolean} scored whether it has a likelihood, which /score needs
 * @property {boolean} mapped whether it has a map
 * @property {number} rows most images or latents of one request
 * @property {number} pixels most pixels of an image file
 */

// Images from this size on are shown smoothed. Thumbnails are smaller than they are, and without smoothing a browser
// leaves out rows of pixels.
const SMOOTH = 48;

/** @param {any} answer of GET /models/{name}/versions/{version} @returns {Model} */
export function describe({ model, manifest, limits }) {
  const { height, width, channels, fit } = manifest.image;
  return {
    reference: model,
    height,
    width,
    channels,
    fit,
    smooth: Math.max(height, width) >= SMOOTH,
    shape: manifest.latent.shape,
    size: manifest.latent.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1),
    kl: (manifest.latent.kl ?? []).flat(Infinity),
    labels: manifest.labels ?? [],
    priors: priorsOf(manifest),
    scored: Boolean(manifest.likelihood),
    mapped: Boolean(manifest.map),
    rows: Math.min(limits.max_images, limits.max_samples),
    pixels: limits.max_pixels,
  };
}

/** The priors to select from, the default first. @param {any} manifest @returns {string[]} */
function priorsOf({ prior, files }) {
  if (prior?.kind === "gmm") return ["mixture", "normal"];
  if (prior?.kind !== "flow") return [];
  return files["prior.npz"] ? ["flow", "mixture", "normal"] : ["flow", "normal"];
}

/** The `count` latent dimensions with the highest KL, highest first. @param {Model} model @param {number} count */
export function strongest({ size, kl }, count) {
  const order = Array.from({ length: size }, (_, index) => index);
  if (kl.length === size) order.sort((a, b) => kl[b] - kl[a]);
  return order.slice(0, count);
}

/**
 * Flat latents as nested lists for the service. Four digits are enough for any visible difference.
 * @param {ArrayLike<number>} numbers
 * @param {number[]} shape
 * @returns {unknown}
 */
export function nested(numbers, shape) {
  /** @type {unknown[]} */
  let lists = Array.from(numbers, (number) => Math.round(number * 1e4) / 1e4);
  for (const length of shape.slice(1).reverse()) {
    lists = Array.from({ length: lists.length / length }, (_, row) => lists.slice(row * length, (row + 1) * length));
  }
  return lists;
}

/** @param {unknown} lists nested, as in the service's answers @returns {number[]} flat */
export const flat = (lists) => /** @type {number[]} */ (/** @type {unknown[]} */ (lists).flat(Infinity));
