// Cards of tagged pieces: the taggram follows the player, and the player the taggram.
// All listeners sit on the document, so that a card needs no more than to be there.

(() => {
  const clock = (s) => {
    const [h, m, rest] = [Math.floor(s / 3600), Math.floor(s / 60) % 60, Math.floor(s) % 60];
    const two = (n) => String(n).padStart(2, "0");
    return h ? `${h}:${two(m)}:${two(rest)}` : `${m}:${two(rest)}`;
  };
  const pieceOf = (item) => item.closest?.(".piece");
  const audioOf = (item) => pieceOf(item)?.querySelector("audio");
  const lengthOf = (item) => Number(pieceOf(item).dataset.durationS);
  let current = null; // the player that the space bar is for

  function show(audio) {
    const duration = lengthOf(audio), at = Math.min(audio.currentTime, duration);
    for (const hearing of pieceOf(audio).querySelectorAll(".hearing")) {
      const numParts = Number(hearing.dataset.parts);
      const part = Math.min(numParts - 1, Math.floor((numParts * at) / duration));
      const scores = (hearing.scores ??= atob(hearing.dataset.scores)); // a byte per row and part
      let loudest = 0;
      hearing.querySelectorAll(".bar").forEach((bar, row) => {
        const now = scores.charCodeAt(row * numParts + part);
        bar.style.setProperty("--now", now / 100);
        if (now > scores.charCodeAt(loudest * numParts + part)) loudest = row;
      });
      hearing.classList.toggle("live", at > 0 || !audio.paused);
      const field = hearing.querySelector(".field");
      const tag = hearing.querySelectorAll(".bars .tag")[loudest].textContent;
      field.querySelector(".cursor").style.left = `${(100 * at) / duration}%`;
      field.setAttribute("aria-valuenow", at.toFixed(1));
      field.setAttribute("aria-valuetext", `${clock(at)} of ${clock(duration)}, strongest: ${tag}`);
    }
  }

  function follow(audio) {
    show(audio);
    if (!audio.paused && audio.isConnected) requestAnimationFrame(() => follow(audio));
  }

  function seek(audio, seconds) {
    audio.currentTime = Math.max(0, Math.min(seconds, lengthOf(audio) - 0.01));
    current = audio;
    show(audio);
  }

  function toggle(audio) {
    audio.paused ? audio.play().catch(() => {}) : audio.pause();
  }

  // Events of players do not bubble, but they can be caught on their way down.
  const onPlayer = (name, act) =>
    document.addEventListener(name, (e) => audioOf(e.target) === e.target && act(e.target), true);
  onPlayer("play", (audio) => {
    document.querySelectorAll(".piece audio").forEach((other) => other !== audio && other.pause());
    current = audio;
    follow(audio);
  });
  onPlayer("seeked", show);
  onPlayer("timeupdate", show);
  onPlayer("error", (audio) => {
    const words = pieceOf(audio).querySelector(".cannot");
    words.textContent =
      "This browser cannot play the file here (a kind it does not know, or it is no longer kept). " +
      "Its tags hold all the same; to hear it, drop it again as mp3, flac or wav.";
    words.hidden = false;
  });

  const atPointer = (field, event) => {
    const box = field.getBoundingClientRect();
    seek(audioOf(field), ((event.clientX - box.left) / box.width) * lengthOf(field));
  };
  document.addEventListener("pointerdown", (event) => {
    const field = event.target.closest?.(".field");
    if (!field || event.button) return;
    field.setPointerCapture(event.pointerId);
    atPointer(field, event);
  });
  document.addEventListener("pointermove", (event) => {
    if (event.target.matches?.(".field") && event.target.hasPointerCapture(event.pointerId))
      atPointer(event.target, event);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest?.(".field");
    if (field) {
      const audio = audioOf(field), at = audio.currentTime;
      const to = { ArrowLeft: at - 5, ArrowDown: at - 5, ArrowRight: at + 5, ArrowUp: at + 5,
        PageDown: at - 30, PageUp: at + 30, Home: 0, End: Infinity }[event.key];
      if (to !== undefined) seek(audio, to);
      else if (event.key === " " || event.key === "Enter") toggle(audio);
      else return;
      event.preventDefault();
    } else if (event.key === " " && !event.target.closest?.("button,a,input,textarea,select,summary,audio")) {
      const audio = current?.isConnected ? current : document.querySelector(".piece audio");
      if (!audio) return;
      toggle(audio);
      event.preventDefault();
    }
  });
})();
