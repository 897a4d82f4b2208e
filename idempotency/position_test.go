package idempotency

import (
	"math"
	"strings"
	"testing"
)

func TestPosition(t *testing.T) {
	for about, c := range map[string]struct {
		kind   kind
		stream string // with | after each event that counts
	}{
		"events":                      {events, "data: 1\n\n|data: 2\n\n|data: [DONE]\n\n|"},
		"named":                       {events, "event: a\ndata: 1\n\n|event: b\ndata: 2\n\n|"},
		"more lines":                  {events, "data: 1\ndata: 2\nid: 3\n\n|"},
		"comments":                    {events, ": working\n\ndata: 1\n\n|: working\n\n: data: x\n\ndata: 2\n: in between\n\n|"},
		"without data":                {events, "event: ping\n\nretry: 3\n\ndata: 1\n\n|id: 1\n\n"},
		"no blank before":             {events, "data:1\n\n|data\n\n|data:\n\n|"},
		"other fields":                {events, "dat: 1\n\ndatas: 1\n\nDATA: 1\n\n data: 1\n\ndata : 1\n\ndataa\n\n"},
		"carriage returns":            {events, "data: 1\r\n\r\n|data: 2\r\n\r\n|: x\r\n\r\n"},
		"only carriage returns":       {events, "data: 1\r\r|event: x\rdata: 2\r\r|"},
		"mixed":                       {events, "data: 1\n\r\n|data: 2\r\n\n|data: 3\r\r\n|"},
		"blank lines":                 {events, "\n\n\ndata: 1\n\n|\n\ndata: 2\n\n|\n"},
		"the last has not ended":      {events, "data: 1\n\n|data: 2\n"},
		"lines":                       {lines, "{\"a\":1}\n|{\"a\":2}\n|"},
		"blank ones":                  {lines, "\n \n{\"a\":1}\r\n|\r\n\t\n {\"a\":2} \n|"},
		"the last line has not ended": {lines, "{}\n|{}"},
	} {
		parts := strings.SplitAfter(c.stream, "|")
		stream := strings.ReplaceAll(c.stream, "|", "")
		end := position{}
		if n := end.read(c.kind, []byte(stream), math.MaxUint64); n != len(stream) || end.Events != uint64(len(parts)-1) {
			t.Errorf("%s: %d events in %d bytes, want %d in %d", about, end.Events, n, len(parts)-1, len(stream))
		}
		for split := range len(stream) + 1 { // wherever its parts are stored apart
			ends := 0
			for n := range len(parts) {
				if n > 0 {
					ends += len(parts[n-1]) - 1
				}
				var p position
				at := p.read(c.kind, []byte(stream[:split]), uint64(n))
				if at == split {
					at += p.read(c.kind, []byte(stream[split:]), uint64(n))
				}
				if at != ends {
					t.Errorf("%s, in two parts %q and %q: event %d ends at %d, want %d", about, stream[:split], stream[split:], n, at, ends)
				}
			}
		}
	}
}

// However a stream is divided into parts, its events end where they do in one.
func FuzzPosition(f *testing.F) {
	f.Add("data: 1\r\n\r\ndata: 2\n\n: x\n\n", uint8(9), uint8(1))
	f.Add("{}\n\r\n{}", uint8(4), uint8(2))
	f.Fuzz(func(t *testing.T, stream string, split, n uint8) {
		i := min(int(split), len(stream))
		for _, k := range []kind{events, lines} {
			var p, q position
			want := p.read(k, []byte(stream), uint64(n))
			got := q.read(k, []byte(stream[:i]), uint64(n))
			if got == i {
				got += q.read(k, []byte(stream[i:]), uint64(n))
			}
			if p != q && p.Events < uint64(n) || got != want {
				t.Errorf("%q: %+v after %d bytes; in parts of %d: %+v after %d", stream, p, want, i, q, got)
			}
		}
	})
}

func BenchmarkPosition(b *testing.B) {
	token := []byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	var p position
	for b.Loop() {
		p.read(events, token, math.MaxUint64)
	}
}
