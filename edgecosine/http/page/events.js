// Server-sent events over fetch, which unlike EventSource sends a key and reads answers to POST.

let key = sessionStorage.getItem("edgecosine-key") || "";

/** Remember the API key until the window is closed. */
export function useKey(given) {
  key = given;
  sessionStorage.setItem("edgecosine-key", given);
}

/** Yield the data of each event, parsed; ends at [DONE]. Throws a Failure. */
export async function* events(url, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(url, { ...options, headers });
  if (!response.ok) throw await Failure.of(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        const data = part.slice(6);
        if (data === "[DONE]") return;
        const message = JSON.parse(data);
        if (message.error) throw new Failure(message.error, 200);
        yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** An error of the server. */
export class Failure extends Error {
  constructor(error, status) {
    super(error.message);
    this.status = status;
  }

  static async of(response) {
    const fallback = { message: `the server answered ${response.status}` };
    const body = await response.json().catch(() => ({}));
    return new Failure(body.error ?? fallback, response.status);
  }
}
