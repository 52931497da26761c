// Starts the page.

import * as chat from "./chat.js";
import { watch } from "./cluster.js";
import { byId } from "./dom.js";
import { useKey } from "./events.js";

/** Ask for an API key; resolves when one was given. */
function askForKey() {
  const form = byId("key-form");
  form.hidden = false;
  return new Promise((resolve) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      useKey(byId("key").value);
      form.hidden = true;
      resolve();
    }, { once: true });
  });
}

chat.start();
watch(chat.useModels, askForKey);
