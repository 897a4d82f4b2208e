package subjects_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"reflect"
	"testing"

	"github.com/pulley-lb/pulley/subjects"
)

type frame struct {
	kind    subjects.Kind
	payload string
}

func frames(t *testing.T, msg []byte) (subjects.Prefix, []frame) {
	t.Helper()
	p, rest, err := subjects.ParsePrefix(msg)
	if err != nil {
		t.Fatal(err)
	}
	var fs []frame
	for len(rest) > 0 {
		var k subjects.Kind
		var b []byte
		if k, b, rest, err = subjects.NextFrame(rest); err != nil {
			t.Fatal(err)
		}
		fs = append(fs, frame{k, string(b)})
	}
	return p, fs
}

// addData adds a data frame.
func addData(w *subjects.Writer, b []byte) { w.Commit(copy(w.Grow(len(b)), b)) }

func TestFramesReadBack(t *testing.T) {
	id := subjects.NewID()
	w := subjects.NewWriter(id, 1<<63+5)
	w.End(&subjects.End{OutputTokens: 3})
	n := copy(w.Grow(10), "abc")
	w.Commit(n)
	w.Grow(100_000) // and read nothing
	addData(w, nil)
	p, got := frames(t, w.Take())
	if want := (subjects.Prefix{ID: id, Attempt: 1<<63 + 5, Seq: 1}); p != want {
		t.Errorf("prefix %+v, want %+v", p, want)
	}
	want := []frame{
		{subjects.KindEnd, `{"output_tokens":3,"input_tokens":0}`},
		{subjects.KindData, "abc"}, {subjects.KindData, ""},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("frames %q, want %q", got, want)
	}
	if w.Sent() != 1 {
		t.Errorf("after Take: sent %d", w.Sent())
	}
	addData(w, []byte("next"))
	if p, got := frames(t, w.Take()); p.Seq != 2 || len(got) != 1 || got[0].payload != "next" {
		t.Errorf("second message: %+v %q", p, got)
	}
}

// A freed writer leaves nothing of its attempt to the next one.
func TestWriterIsReused(t *testing.T) {
	for i := range 100 {
		id := subjects.NewID()
		w := subjects.NewWriter(id, uint64(i))
		if w.Sent() != 0 {
			t.Fatalf("writer %d: sent %d", i, w.Sent())
		}
		addData(w, []byte("x"))
		if p, fs := frames(t, w.Take()); p != (subjects.Prefix{ID: id, Attempt: uint64(i), Seq: 1}) || len(fs) != 1 {
			t.Fatalf("writer %d: %+v %q", i, p, fs)
		}
		addData(w, []byte("never sent"))
		w.Free()
	}
}

// The layout that doc.go promises to workers in other languages.
func TestFrameLayout(t *testing.T) {
	id, err := subjects.ParseID("0190a5f2-1234-7abc-8def-0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	w := subjects.NewWriter(id, 0x1122334455667788)
	addData(w, []byte("hi"))
	const want = "0190a5f212347abc8def0123456789ab" + "1122334455667788" + "00000001" + "64" + "00000002" + "6869"
	if got := hex.EncodeToString(w.Take()); got != want {
		t.Errorf("message\n%s, want\n%s", got, want)
	}
}

func TestNextFrameRefuses(t *testing.T) {
	for about, b := range map[string]string{
		"half a header":           "d\x00\x00",
		"longer than the message": "d\x00\x00\x00\x03ab",
		"four gigabytes":          "d\xff\xff\xff\xffab",
		"an unknown kind":         "x\x00\x00\x00\x00",
		"no kind":                 "\x00\x00\x00\x00\x00",
		"an upper-case kind":      "D\x00\x00\x00\x00",
		"a frame, then bytes":     "d\x00\x00\x00\x00d",
	} {
		_, _, rest, err := subjects.NextFrame([]byte(b))
		for err == nil && len(rest) > 0 {
			_, _, rest, err = subjects.NextFrame(rest)
		}
		if !errors.Is(err, subjects.ErrFrame) {
			t.Errorf("%s: %q: got %v, want ErrFrame", about, b, err)
		}
	}
	if _, _, err := subjects.ParsePrefix(make([]byte, subjects.PrefixLen-1)); !errors.Is(err, subjects.ErrFrame) {
		t.Errorf("a short prefix: got %v, want ErrFrame", err)
	}
}

// FuzzFrames reads untrusted bytes: no panic, nothing outside of the message, and the frames encode
// to the message again.
func FuzzFrames(f *testing.F) {
	w := subjects.NewWriter(subjects.ID{1}, 7)
	w.Head(&subjects.Head{Status: 200})
	addData(w, []byte("data: x\n\n"))
	w.End(&subjects.End{})
	f.Add(bytes.Clone(w.Take()))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Add(append(make([]byte, subjects.PrefixLen), "d\x00\x00\x00\x09ab"...))
	f.Fuzz(func(t *testing.T, msg []byte) {
		_, rest, err := subjects.ParsePrefix(msg)
		if err != nil {
			return
		}
		again := bytes.Clone(msg[:subjects.PrefixLen])
		for len(rest) > 0 {
			k, payload, r, err := subjects.NextFrame(rest)
			if err != nil {
				return
			}
			if len(r) >= len(rest) || len(payload)+len(r) >= len(rest) {
				t.Fatalf("frame %q of %d bytes leaves %d of %d", k, len(payload), len(r), len(rest))
			}
			again = append(again, byte(k))
			again = binary.BigEndian.AppendUint32(again, uint32(len(payload)))
			again = append(again, payload...)
			rest = r
		}
		if !bytes.Equal(again, msg) {
			t.Errorf("written again: %x, was %x", again, msg)
		}
	})
}

// FuzzWriter splits bytes into frames and messages at random and joins them again.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("hello"), uint64(1))
	f.Add(bytes.Repeat([]byte("x"), 10_000), uint64(2))
	f.Fuzz(func(t *testing.T, body []byte, seed uint64) {
		draw := rand.New(rand.NewPCG(seed, 1))
		w := subjects.NewWriter(subjects.ID{9}, seed)
		var got []byte
		var seq uint32
		take := func() {
			p, fs := frames(t, w.Take())
			if seq++; p.Seq != seq || p.Attempt != seed {
				t.Fatalf("prefix %+v, want sequence %d", p, seq)
			}
			for _, f := range fs {
				got = append(got, f.payload...)
			}
		}
		for rest := body; len(rest) > 0; {
			n := draw.IntN(len(rest)) + 1
			if draw.IntN(2) == 0 {
				addData(w, rest[:n])
			} else {
				w.Commit(copy(w.Grow(n+draw.IntN(100)), rest[:n]))
			}
			rest = rest[n:]
			if draw.IntN(3) == 0 {
				take()
			}
		}
		take()
		if !bytes.Equal(got, body) {
			t.Errorf("got %q, want %q", got, body)
		}
	})
}

func TestHeadReadsBack(t *testing.T) {
	header := http.Header{
		"Content-Type":        {"text/event-stream"},
		"Set-Cookie":          {"a=1; Path=/", "b=2"},
		"Content-Disposition": {"attachment; filename=\"na\xefve.txt\""}, // Latin-1, which old servers send
		"X-Unicode":           {"ü ñ 界"},
		"X-Empty":             {""},
	}
	w := subjects.NewWriter(subjects.NewID(), 1)
	w.Head(&subjects.Head{Status: 201, Header: header, Length: -1})
	w.Fail(&subjects.Fail{Class: subjects.FailRefused, Reason: "full\xff", Answer: &subjects.Head{Status: 429, Header: header}, Body: []byte("\xff\x00")})
	_, fs := frames(t, w.Take())
	head, err := subjects.ParseHead([]byte(fs[0].payload))
	if err != nil || head.Status != 201 || head.Length != -1 || !reflect.DeepEqual(head.Header, header) {
		t.Errorf("head %+v, %v", head, err)
	}
	fail, err := subjects.ParseFail([]byte(fs[1].payload))
	if err != nil || fail.Class != subjects.FailRefused || fail.Reason != "full\ufffd" || string(fail.Body) != "\xff\x00" || !reflect.DeepEqual(fail.Answer.Header, header) {
		t.Errorf("fail %+v, %v", fail, err)
	}
}

// Heads that workers of other implementations may send.
func TestParseHead(t *testing.T) {
	h, err := subjects.ParseHead([]byte(`{"status":200,"header":{"content-type":["text/plain"],"CONTENT-TYPE":["text/html"],"transfer-encoding":["chunked"],
		"connection":["keep-alive, x-hop"],"X-Hop":["1"],"X-Name":["` + "\u754c" + `"]},"length":3}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Header["Content-Type"]; len(got) != 2 {
		t.Errorf("content type %q: want both spellings under one name", got)
	}
	for _, k := range []string{"Transfer-Encoding", "Connection", "X-Hop"} {
		if h.Header[k] != nil || len(h.Header) != 2 {
			t.Errorf("header %q: hop-by-hop headers must be removed", h.Header)
		}
	}
	if got := h.Header.Get("X-Name"); got != "\u754c" {
		t.Errorf("a value that is not bytes: %q", got)
	}
	for about, payload := range map[string]string{
		"not JSON":                "{",
		"no status":               `{"length":1}`,
		"informational":           `{"status":103}`,
		"a status of four digits": `{"status":1000}`,
		"a list":                  `[]`,
	} {
		if h, err := subjects.ParseHead([]byte(payload)); err == nil {
			t.Errorf("%s: %+v, want an error", about, h)
		}
	}
	if f, err := subjects.ParseFail([]byte(`{"class":"refused","answer":{"status":42}}`)); err == nil {
		t.Errorf("a refusal with status 42: %+v, want an error", f)
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte(`{"status":200,"header":{"A":["b"]},"length":-1}`))
	f.Add([]byte(`{"status":200,"header":{"a":["b"],"A":["c"]}}`))
	f.Add([]byte(`{"status":200,"header":null}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		h, err := subjects.ParseHead(payload)
		if err != nil {
			return
		}
		if h.Header == nil || h.Status < 200 || h.Status > 999 {
			t.Fatalf("%s: %+v", payload, h)
		}
		w := subjects.NewWriter(subjects.ID{}, 0)
		w.Head(h)
		_, fs := frames(t, w.Take())
		again, err := subjects.ParseHead([]byte(fs[0].payload))
		if err != nil || !reflect.DeepEqual(again, h) {
			b, _ := json.Marshal(h)
			t.Errorf("%s: read again %+v, %v, was %s", payload, again, err, b)
		}
	})
}
