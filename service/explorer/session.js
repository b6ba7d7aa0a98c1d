/** One model on the page: what all panels share, until another model is chosen. */

import { send } from "./api.js";

/** @typedef {import("./api.js").Call} Call */
/** @typedef {import("./model.js").Model} Model */

/**
 * A picture that was encoded.
 * @typedef {object} Encoded
 * @property {string} url of the picture
 * @property {number[]} latents flat
 */

/** A value that others watch. @template T */
export class Shared {
  /** @type {T | undefined} */
  value;
  /** @type {((value: T) => void)[]} */
  #watchers = [];

  /** @param {T} value */
  set(value) {
    this.value = value;
    for (const watcher of this.#watchers) watcher(value);
  }

  /** @param {(value: T) => void} watcher */
  watch(watcher) {
    this.#watchers.push(watcher);
  }
}

export class Session {
  /** @type {Shared<Encoded>} what is described, turned and looked for on the map */
  picture = new Shared();
  /** @type {Shared<Encoded[]>} what hangs on the wall */
  samples = new Shared();
  /** @type {Shared<Blob>} a picture that shall be described */
  chosen = new Shared();

  /** @param {Model} model @param {AbortSignal} signal */
  constructor(model, signal) {
    this.model = model;
    this.signal = signal;
  }

  /** The call, to this model. @param {Call} call @returns {Call} */
  to(call) {
    return { ...call, query: { model: this.model.reference, ...call.query } };
  }

  /** @param {Call} call to this model */
  async json(call) {
    return (await send(call, this.signal)).json();
  }

  /** @param {Call} call to this model */
  async blob(call) {
    return (await send(call, this.signal)).blob();
  }
}
