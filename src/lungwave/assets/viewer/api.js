// Talks to the program that serves this page, and to nobody else.

export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refusal("lungwave has ended. Start 'lungwave view' again and open the address that it prints.", 0);
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let said = text;
  try {
    said = JSON.parse(text).error || text;
  } catch {
    // plain text, as the gate answers
  }
  throw new Refusal(said || `the request failed (${answer.status})`, answer.status);
}

export const about = async () => (await ask("/api/about")).json();
export const list = async () => (await ask("/api/jobs")).json();
export const drop = (id) => ask(`/api/jobs/${id}`, { method: "DELETE" });
export const reportAddress = (id) => `/api/jobs/${id}/report`;

export async function order(kind, settings) {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask("/api/jobs", { method: "POST", headers, body: JSON.stringify({ kind, settings }) });
  return (await answer.json()).id;
}

export async function upload(file, settings) {
  const headers = {
    "Content-Type": "application/octet-stream",
    "X-File-Name": encodeURIComponent(file.name),
    "X-Settings": JSON.stringify(settings),
  };
  return (await (await ask("/api/files", { method: "POST", headers, body: file })).json()).id;
}

// Facts and arrays of a job; an array is { data, shape }.
export async function result(id) {
  const [facts, bytes] = await Promise.all([
    ask(`/api/jobs/${id}/result`).then((answer) => answer.json()),
    ask(`/api/jobs/${id}/arrays`).then((answer) => answer.arrayBuffer()),
  ]);
  const arrays = {};
  for (const [name, { type, shape, offset }] of Object.entries(facts.arrays)) {
    const size = shape.reduce((a, b) => a * b, 1);
    arrays[name] = { data: new (type === "uint8" ? Uint8Array : Float32Array)(bytes, offset, size), shape };
  }
  return { facts, arrays };
}
