// The simulator's magic header, as far as a real engine can follow it. Orders are joined by commas:
//
//   refuse         429 with retry-after
//   fail=STATUS    that status, 500 if left out
//   close          the connection is closed without an answer
//   hang           no answer, ever
//   cut-after=N    the connection is reset after N tokens
//   hang-after=N   no token after the first N
export function parseFault(header = "") {
  const words = new Map(header.split(",").map((word) => word.trim().split("=")));
  return {
    refuse: words.has("refuse"),
    fail: words.has("fail") ? Number(words.get("fail") ?? 500) : 0,
    close: words.has("close"),
    hang: words.has("hang"),
    cutAfter: Number(words.get("cut-after") ?? 0),
    hangAfter: Number(words.get("hang-after") ?? 0),
  };
}
