package sim

import (
	"net/http"
	"strconv"
)

// An answer is written in the form of one API.
type answer interface {
	whole() (contentType string, body []byte)
}

// A streamer is an answer that can also be streamed.
type streamer interface {
	answer
	contentType() string
	begin(*stream)              // before the first token
	tokens(_ *stream, i, n int) // the tokens from i until before n
	end(*stream)                // after the last token
}

// A stream writes events, each separately and at once. After an error it writes nothing more.
type stream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf []byte
	err error
}

func newStream(w http.ResponseWriter, contentType string) *stream {
	h := w.Header()
	h["Content-Type"] = []string{contentType}
	h["Cache-Control"] = []string{"no-cache"}
	return &stream{w: w, rc: http.NewResponseController(w)}
}

// event writes one server-sent event; an empty name is left out.
func (st *stream) event(name string, data []byte) {
	st.buf = st.buf[:0]
	if name != "" {
		st.buf = append(append(append(st.buf, "event: "...), name...), '\n')
	}
	st.buf = append(append(append(st.buf, "data: "...), data...), "\n\n"...)
	st.write(st.buf)
}

func (st *stream) write(b []byte) {
	if st.err != nil {
		return
	}
	if _, st.err = st.w.Write(b); st.err == nil {
		st.err = st.rc.Flush()
	}
}

// run takes the work through the batch and writes its answer. It returns an *apiError for the
// client, nil, or the reason why the client cannot use an answer.
func (s *Engine) run(w http.ResponseWriter, r *http.Request, wk *work, a answer, o orders) error {
	q := &sequence{
		in:     wk.in,
		caches: wk.caches,
		blocks: wk.blocks,
		limit:  wk.out,
		extra:  s.cfg.TTFT + o.ttft,
		sticks: o.hang,
		fresh:  -1,
		wake:   make(chan struct{}, 1),
	}
	if o.hang || o.cut {
		q.limit = min(o.after, wk.out)
	}
	pieces, ok := a.(streamer)
	streamed := ok && wk.stream
	if streamed {
		q.step = s.cfg.TokensPerEvent
	}
	leave, err := s.loader.enter(r.Context(), wk.served)
	if err != nil {
		s.aborted.Add(1)
		return err
	}
	defer leave()
	if !s.batch.submit(q) {
		return s.full(wk)
	}
	defer s.batch.leave(q)

	if streamed {
		err = s.writeStream(w, r, wk, pieces, q, o)
	} else {
		err = s.writeWhole(w, r, wk, a, q, o)
	}
	if err != nil {
		s.aborted.Add(1)
	}
	return err
}

func (s *Engine) writeWhole(w http.ResponseWriter, r *http.Request, wk *work, a answer, q *sequence, o orders) error {
	if _, _, err := s.batch.await(r.Context(), q, q.limit); err != nil { // beyond the limit there is only the end
		return err
	}
	wk.cached, wk.computed, wk.read = q.cached, q.computed, q.read
	contentType, body := a.whole()
	if !o.cut {
		s.count(wk)
		writeBody(w, http.StatusOK, contentType, body)
		return nil
	}
	s.failed.Add(1)
	if o.after > 0 {
		h := w.Header()
		h["Content-Type"] = []string{contentType}
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler)
}

func (s *Engine) writeStream(w http.ResponseWriter, r *http.Request, wk *work, a streamer, q *sequence, o orders) error {
	st := newStream(w, a.contentType())
	if o.early {
		st.write(nil)
	}
	for sent, ended := 0, false; !ended; {
		var made int
		var err error
		if made, ended, err = s.batch.await(r.Context(), q, sent); err != nil {
			return err
		}
		for sent < made && st.err == nil {
			if sent == 0 {
				wk.cached, wk.computed, wk.read = q.cached, q.computed, q.read
				a.begin(st)
			}
			n := q.next(sent)
			a.tokens(st, sent, n)
			sent = n
		}
		if st.err != nil {
			return st.err
		}
	}
	if o.cut {
		s.failed.Add(1)
		panic(http.ErrAbortHandler)
	}
	s.count(wk)
	a.end(st)
	return nil
}

func (s *Engine) count(wk *work) {
	s.finished.Add(1)
	s.tokensIn.Add(int64(wk.in))
	s.tokens.Add(int64(wk.out))
}
