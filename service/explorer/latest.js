/** Keeps one request per control in flight, and of those that wait only the latest. */

import { Problem } from "./api.js";
import { trouble } from "./dom.js";

/**
 * @template {unknown[]} A
 * @param {ParentNode} panel that shows failures
 * @param {AbortSignal} signal ends all work
 * @param {(...values: A) => Promise<void>} work
 * @returns {(...values: A) => Promise<void>} resolves when nothing is waiting
 */
export function latestOnly(panel, signal, work) {
  /** @type {A | undefined} */
  let waiting;
  let running = false;
  return async (...values) => {
    waiting = values;
    if (running) return;
    running = true;
    while (waiting && !signal.aborted) {
      const next = waiting;
      waiting = undefined;
      trouble(panel, "");
      try {
        await work(...next);
      } catch (error) {
        if (signal.aborted) break;
        if (!(error instanceof Problem)) throw error;
        trouble(panel, error.message);
      }
    }
    running = false;
  };
}
