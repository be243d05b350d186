// An edge bundle as a function from texts to probabilities: files checked, texts tokenized, the graph run. Nothing here
// touches the page.

import { makeTokenizer } from "./characters.mjs";

/** What went wrong, as one sentence for the visitor. */
export class DemoError extends Error {}

const FORMAT_VERSION = 2;
export const RESTART = "start the server again with `make demo`";
const AGAIN = "make the bundle again with `edgemin bundle`";
// A function that returns a SIMD vector: what a runtime with SIMD validates and one without refuses.
const SIMD_MODULE = new Uint8Array([
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00,
  0x01, 0x05, 0x01, 0x60, 0x00, 0x01, 0x7b,
  0x03, 0x02, 0x01, 0x00,
  0x0a, 0x08, 0x01, 0x06, 0x00, 0x41, 0x00, 0xfd, 0x0f, 0x0b,
]);

/** Throws a DemoError unless this browser runs WebAssembly with SIMD, which the runtime is built for. */
export function requireWebAssembly() {
  if (typeof WebAssembly === "undefined" || !WebAssembly.validate(SIMD_MODULE)) {
    throw new DemoError("This browser cannot run WebAssembly with SIMD; open the page in a current Chromium, Firefox " +
      "or Safari.");
  }
}

/** The JSON value at an address. Throws a DemoError when it is not there or is no JSON. */
export async function fetchJson(address, remedy = RESTART) {
  const bytes = await fetchBytes(address, remedy);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new DemoError(`${fileName(address)} is damaged (it is not JSON); ${remedy}.`);
  }
}

/** bundle.json at the bundle's address (which ends in a slash). Throws a DemoError for a format that is not ours. */
export async function fetchManifest(address) {
  const manifest = await fetchJson(`${address}bundle.json`, AGAIN);
  if (manifest.format_version !== FORMAT_VERSION) {
    throw new DemoError(`bundle.json says format ${manifest.format_version}, and this page reads format ` +
      `${FORMAT_VERSION}; ${AGAIN}.`);
  }
  return manifest;
}

/**
 * A file's bytes, whose SHA-256 is what `entry` says.
 * @param {string} address
 * @param {{bytes: number, sha256: string}} entry
 * @param {string} remedy what to do when it is not so
 * @returns {Promise<Uint8Array>} Throws a DemoError when the file is not there or is another one.
 */
export async function fetchChecked(address, entry, remedy = AGAIN) {
  const name = fileName(address);
  if (!entry) throw new DemoError(`No checksum of ${name} is recorded; ${remedy}.`);
  if (!globalThis.crypto?.subtle) {
    throw new DemoError("This browser checks no SHA-256 at this address; open the page at 127.0.0.1.");
  }
  const bytes = await fetchBytes(address, remedy);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== entry.sha256) {
    throw new DemoError(`${name} is damaged: its SHA-256 is not the recorded one; ${remedy}.`);
  }
  return bytes;
}

/**
 * How long each of two texts may be so that both fit: the longer one loses tokens first, as `longest_first` in the
 * tokenizers library. The second number is 0 for a single text.
 */
export function lengthsThatFit(first, second, room) {
  if (first + second <= room) return [first, second];
  if (!second) return [room, 0];
  const [shorter, longer] = first <= second ? [first, second] : [second, first];
  let [a, b] = [shorter, Math.min(longer, Math.max(shorter, room - shorter))];
  if (a + b > room) [a, b] = [Math.floor(room / 2), Math.floor(room / 2) + (room % 2)];
  return first <= second ? [a, b] : [b, a];
}

/**
 * A function from one row (an array of one or two texts) to {ids, types, cut}: token ids and token types, special tokens
 * included, at most `maxLength` of them, cut on the side that the rules name, and whether the row had more.
 * @param Tokenizer the class of @huggingface/tokenizers
 * @param {object} rules what tokenizer.json holds
 */
export function makeEncoder(Tokenizer, rules, maxLength) {
  const tokenizer = makeTokenizer(Tokenizer, rules);
  const kept = rules.truncation?.direction === "Left" ? (tokens, count) => tokens.slice(tokens.length - count)
    : (tokens, count) => tokens.slice(0, count);
  const assemble = (first, second) => tokenizer.post_processor
    ? tokenizer.post_processor(first, second, true)
    : { tokens: [...first, ...(second ?? [])] };
  return (texts) => {
    let [first, second = null] = texts.map((text) => tokenizer.tokenize(text, { add_special_tokens: false }));
    const special = assemble([], second && []).tokens.length;
    const length = first.length + (second?.length ?? 0);
    const [a, b] = lengthsThatFit(first.length, second?.length ?? 0, maxLength - special);
    first = kept(first, a);
    second = second && kept(second, b);
    const { tokens, token_type_ids: types } = assemble(first, second);
    const ids = tokens.map((token) => tokenizer.token_to_id(token) ?? tokenizer.model.unk_token_id);
    return { ids, types: types ?? ids.map(() => 0), cut: a + b < length };
  };
}

/**
 * A model that is ready to answer.
 * @param runtime onnxruntime-web
 * @param {Uint8Array} graph the .onnx file
 * @param {string} name the file's name, for errors
 * @param encode what `makeEncoder` returns
 * @param {object} manifest bundle.json
 */
export async function openModel(runtime, graph, name, encode, manifest) {
  let session;
  try {
    session = await runtime.InferenceSession.create(graph, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  } catch (error) {
    throw new DemoError(`${name} cannot be run by onnxruntime-web: ${firstLine(error)}`);
  }

  /** The session's inputs for one row of token ids. */
  function feed({ ids, types }) {
    const values = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types };
    return Object.fromEntries(session.inputNames.map((input) => [input,
      new runtime.Tensor("int64", BigInt64Array.from(values[input], BigInt), [1, ids.length])]));
  }

  /** {logits, milliseconds} of what `feed` returns: one logit a label, and how long the graph took. */
  const run = (inputs) => inTurn(async () => {
    const start = performance.now();
    const { logits } = await session.run(inputs);
    const milliseconds = performance.now() - start;
    return { logits: Array.from(logits.data), milliseconds };
  });

  /** The answer to one row: label, probabilities in the labels' order, number of tokens, whether the row was cut. */
  async function classify(texts) {
    const encoding = encode(texts);
    const probabilities = softmax((await run(feed(encoding))).logits);
    const best = probabilities.indexOf(Math.max(...probabilities));
    return { label: manifest.labels[best], probabilities, tokens: encoding.ids.length, cut: encoding.cut };
  }

  return { bytes: graph.length, encode, feed, run, classify };
}

/** Probabilities from logits. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** An error's first line. */
export function firstLine(error) {
  return String(error?.message ?? error).split("\n")[0];
}

// The runtime keeps what a forward needs on one stack, so forwards must not overlap, whichever model they are of.
let lastForward = Promise.resolve();

function inTurn(forward) {
  const result = lastForward.then(forward);
  lastForward = result.catch(() => {});
  return result;
}

async function fetchBytes(address, remedy) {
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new DemoError(`${fileName(address)} cannot be fetched: the server does not answer; ${RESTART}.`);
  }
  if (!response.ok) {
    throw new DemoError(`${fileName(address)} is missing (the server answers ${response.status}); ${remedy}.`);
  }
  return new Uint8Array(await response.arrayBuffer());
}

function fileName(address) {
  return address.split("/").pop();
}
