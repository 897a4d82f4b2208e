package page

import (
	"bytes"
	"net/http"
	"time"
)

const (
	// slowViewer is how long a viewer may take nothing before its stream ends. It then connects again.
	slowViewer = 10 * time.Second

	// quietFor is after how long without a change a viewer gets a comment, so that proxies keep the connection.
	quietFor = 15 * time.Second

	// streamFor is how long a stream lasts. A viewer then connects again, with a token that may have been replaced since.
	streamFor = 10 * time.Minute
)

// live sends the state as server-sent events: first all sections, then those that change. An event is named after its section,
// and its data are one line of JSON. A viewer that reads slowly misses states in between, and gets the latest.
func (p *Page) live(w http.ResponseWriter, r *http.Request) {
	if !p.enter() {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many viewers of this page", http.StatusServiceUnavailable)
		return
	}
	defer p.leave()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	rc := http.NewResponseController(w)
	send := func(b []byte) error {
		rc.SetWriteDeadline(time.Now().Add(slowViewer)) // where it is supported
		if _, err := w.Write(b); err != nil {
			return err
		}
		return rc.Flush()
	}
	if send([]byte(": pulley\n\n")) != nil {
		return
	}
	end, quiet := time.NewTimer(streamFor), time.NewTicker(quietFor)
	defer end.Stop()
	defer quiet.Stop()
	stamp := uint64(0)
	for {
		newer, now, changed := p.since(stamp)
		if len(newer) > 0 {
			if send(frame(newer)) != nil {
				return
			}
			stamp = now
			quiet.Reset(quietFor)
		}
		select {
		case <-r.Context().Done():
			return
		case <-end.C:
			return
		case <-changed:
		case <-quiet.C:
			if send([]byte(": quiet\n\n")) != nil {
				return
			}
		}
	}
}

// frame writes sections as events. JSON of encoding/json is one line.
func frame(sections []section) []byte {
	var b bytes.Buffer
	for _, s := range sections {
		b.WriteString("event: ")
		b.WriteString(s.name)
		b.WriteString("\ndata: ")
		b.Write(s.data)
		b.WriteString("\n\n")
	}
	return b.Bytes()
}
