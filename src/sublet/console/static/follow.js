// A log that goes on while it is looked at.
export async function start(box) {
  const stop = new AbortController();
  const gone = setInterval(() => { if (!box.isConnected) { stop.abort(); clearInterval(gone); } }, 500);
  try {
    const came = await fetch(box.dataset.follow, { signal: stop.signal });
    if (!came.ok) return;
    const reader = came.body.pipeThrough(new TextDecoderStream()).getReader();
    let first = true;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const below = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
      if (first) box.textContent = "";
      first = false;
      box.append(value);
      if (box.textContent.length > 200000) box.textContent = box.textContent.slice(-100000);
      if (below) box.scrollTop = box.scrollHeight;
    }
  } catch { /* looked at no longer, or signed out: what is there stays */ }
  clearInterval(gone);
}
