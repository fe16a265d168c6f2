// The page of `mstag serve`: files may be dropped anywhere, too large ones are named and left out
// before a byte of them is sent, and each piece keeps its card (and goes on playing) while others
// are being tagged. Gradio runs this with `element`, `props` and `watch`.

const status = element.querySelector(".status");
const refusals = element.querySelector(".refusals");
const pieces = element.querySelector(".pieces");
const maxMb = props.max_mb;

function place() {
  const { summary, cards } = props.value;
  if (status.innerHTML !== summary) status.innerHTML = summary;
  if (!cards.length) refusals.replaceChildren();
  const known = new Map([...pieces.children].map((slot) => [slot.id, slot]));
  for (const { id, html } of cards) {
    let slot = known.get(id);
    known.delete(id);
    if (!slot) {
      slot = Object.assign(document.createElement("div"), { id });
      pieces.append(slot);
    }
    if (slot.shown !== html) slot.innerHTML = slot.shown = html;
  }
  known.forEach((slot) => slot.remove());
}
watch("value", place);

function refuse(file) {
  const words = document.createElement("p");
  const mb = Math.ceil(file.size / 1e6);
  words.className = "refused";
  words.textContent =
    `${file.name}: not sent, as it has ${mb} MB and this page takes ${maxMb} at most. ` +
    `Drop it as mp3 or flac, cut it into parts, or start the page with --max-mb ${mb}.`;
  refusals.append(words);
}

// Gradio's own input, with those files that it may take; while it is busy there is none.
function give(files, tries = 0) {
  const fitting = new DataTransfer();
  for (const file of files) file.size > maxMb * 1e6 ? refuse(file) : fitting.items.add(file);
  if (!fitting.files.length) return;
  const input = document.querySelector("#drop input[type=file]");
  if (!input) {
    if (tries < 1200) setTimeout(() => give(fitting.files, tries + 1), 500);
    return;
  }
  input.files = fitting.files;
  input.checked = true; // marks the event as ours
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

document.addEventListener("change", (event) => {
  const input = event.target;
  if (!input.matches?.("#drop input[type=file]")) return;
  if (input.checked) {
    input.checked = false;
    return;
  }
  event.stopImmediatePropagation();
  give([...input.files]);
}, true);

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  // Gradio's zone has seen the files come; it is told that they are gone.
  event.target.dispatchEvent(new DragEvent("dragleave", { bubbles: true }));
  give([...event.dataTransfer.files]);
}, true);
