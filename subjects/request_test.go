package subjects_test

import (
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/subjects"
)

// carried is a message after it has passed through NATS's encoding of headers.
func carried(t *testing.T, m *nats.Msg) *nats.Msg {
	t.Helper()
	var wire strings.Builder
	wire.WriteString("NATS/1.0\r\n")
	for k, vs := range m.Header {
		for _, v := range vs {
			if strings.ContainsAny(v, "\r\n") {
				t.Fatalf("header %s has a line break: %q", k, v)
			}
			wire.WriteString(k + ": " + v + "\r\n")
		}
	}
	wire.WriteString("\r\n")
	h, err := nats.DecodeHeadersMsg([]byte(wire.String()))
	if err != nil {
		t.Fatal(err)
	}
	return &nats.Msg{Subject: m.Subject, Header: h, Data: m.Data}
}

func TestRequestReadsBack(t *testing.T) {
	r := &subjects.Request{
		ID: subjects.NewID(), Gateway: "gw1", Tenant: "ten\nant", Tier: "standard",
		Model: "org/ü ñ\r\n*", Pool: "org/ü ñ\r\n*", Deadline: 1234, Method: "POST", Path: "/v1/chat/completions?a=b&c=%20",
		Header: http.Header{
			"Content-Type": {"application/json"},
			"X-Breaks":     {"a\r\nNats-TTL: 1"},
			"X-Unicode":    {"ü ñ 界 \u2028"},
			"X-Latin-1":    {"caf\xe9"},
			"X-Two":        {"1", "2"},
			"X-Space":      {" a "},
			"X-Markup":     {"<a&b>"},
		},
		Stream: true, InputTokens: 9, BodySize: 4,
	}
	sent := r.Header.Clone()
	m, err := r.Msg(subjects.Shared, []byte("\x00\xff{}"), 1500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r.Header, sent) {
		t.Errorf("Msg changed the request's own header to %q", r.Header)
	}
	m = carried(t, m)
	if got, want := m.Header.Get(subjects.HeaderTTL), "2s"; got != want {
		t.Errorf("TTL %q, want %q: rounded up", got, want)
	}
	if got := m.Header.Get(subjects.HeaderMsgID); got != r.ID.String() {
		t.Errorf("message id %q, want the request's", got)
	}
	if m.Subject != subjects.Req("standard", r.Pool, subjects.Shared) || string(m.Data) != "\x00\xff{}" {
		t.Errorf("subject %q, body %q", m.Subject, m.Data)
	}
	got, err := subjects.ParseRequest(m)
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("read back\n%+v, %v, want\n%+v", got, err, r)
	}

	r.ByReference = true
	if m, err = r.Msg(subjects.Shared, []byte("body"), 0); err != nil || m.Data != nil || m.Header[subjects.HeaderTTL] != nil {
		t.Errorf("by reference and without a deadline: body %q, header %q, %v", m.Data, m.Header, err)
	}
}

func TestParseRequestRefuses(t *testing.T) {
	for about, header := range map[string]nats.Header{
		"no header":              nil,
		"two headers":            {subjects.HeaderRequest: {`{"path":"/"}`, `{"path":"/"}`}},
		"not JSON":               {subjects.HeaderRequest: {`{`}},
		"not a request id":       {subjects.HeaderRequest: {`{"id":"x","path":"/"}`}},
		"a negative size":        {subjects.HeaderRequest: {`{"path":"/","size":-1,"ref":true}`}},
		"a path on another host": {subjects.HeaderRequest: {`{"path":"@other-host/"}`}},
		"no path":                {subjects.HeaderRequest: {`{}`}},
	} {
		if r, err := subjects.ParseRequest(&nats.Msg{Header: header}); err == nil {
			t.Errorf("%s: %+v, want an error", about, r)
		}
	}
}

func TestParsePublishAck(t *testing.T) {
	for about, data := range map[string]string{
		"as the server writes it": `{"stream":"S","seq":7}`,
		"in a domain":             `{"stream":"S","domain":"d","seq":7}`,
		"a second time":           `{"stream":"S","seq":7,"duplicate": true}`,
		"in another order":        `{ "seq":7, "stream":"S" }`,
	} {
		if seq, err := subjects.ParsePublishAck(&nats.Msg{Data: []byte(data)}); seq != 7 || err != nil {
			t.Errorf("%s: %d, %v, want 7", about, seq, err)
		}
	}
	full := &nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"S","seq":0}`)}
	if _, err := subjects.ParsePublishAck(full); err == nil {
		t.Error("a full stream is not an error")
	} else if api, ok := errors.AsType[*jetstream.APIError](err); !ok || api.ErrorCode != 10077 {
		t.Errorf("a full stream: %v, want the server's own error", err)
	}
	noResponders := &nats.Msg{Header: nats.Header{"Status": {"503"}}}
	if _, err := subjects.ParsePublishAck(noResponders); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("no responders: %v, want ErrNoStreamResponse", err)
	}
	for _, data := range []string{"", "{}", `{"stream":"S","seq":0}`, `{"stream":"S","seq":-1}`, `[]`, `{"stream":"S"`} {
		if seq, err := subjects.ParsePublishAck(&nats.Msg{Data: []byte(data)}); err == nil {
			t.Errorf("%q: %d, want an error", data, seq)
		}
	}
}

func TestParseID(t *testing.T) {
	id := subjects.NewID()
	if got, err := subjects.ParseID(id.String()); err != nil || got != id {
		t.Errorf("ParseID(%q) = %v, %v", id, got, err)
	}
	for _, s := range []string{"", "x", "{" + id.String() + "}", "urn:uuid:" + id.String(), strings.ReplaceAll(id.String(), "-", ""), strings.Repeat("-", 36)} {
		if got, err := subjects.ParseID(s); err == nil {
			t.Errorf("ParseID(%q) = %v, want an error", s, got)
		}
	}
}

func FuzzRequestHeader(f *testing.F) {
	f.Add("X-A", "plain", "ü")
	f.Add("X-A", "caf\xe9", "a\r\nb")
	f.Add("", "", "\xc3\x83")
	f.Fuzz(func(t *testing.T, name, a, b string) {
		r := &subjects.Request{Tier: "t", Path: "/", Header: http.Header{strings.ToValidUTF8(name, ""): {a, b}}}
		m, err := r.Msg(subjects.Shared, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := subjects.ParseRequest(carried(t, m)); err != nil || !reflect.DeepEqual(got.Header, r.Header) {
			t.Errorf("got %q, %v, want %q", got.Header, err, r.Header)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	f.Add(`{"id":"0190a5f2-1234-7abc-8def-0123456789ab","path":"/v1","size":3,"header":{"A":["b"]}}`)
	f.Add(`{"size":-1}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, meta string) {
		r, err := subjects.ParseRequest(&nats.Msg{Header: nats.Header{subjects.HeaderRequest: {meta}}})
		if err == nil && (r.BodySize < 0 || r.Path == "" || r.Path[0] != '/') {
			t.Errorf("%q: %+v", meta, r)
		}
	})
}

func TestParseAck(t *testing.T) {
	want := subjects.Delivery{Stream: "S", Consumer: "c", Delivered: 2, StreamSeq: 30, ConsumerSeq: 4, Pending: 7, Stored: time.Unix(1_700_000_000, 0)}
	for about, subject := range map[string]string{
		"short form":                     "$JS.ACK.S.c.2.30.4.1700000000000000000.7",
		"long form":                      "$JS.ACK.dom.acchash.S.c.2.30.4.1700000000000000000.7.rnd",
		"long form, no domain":           "$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7.rnd",
		"long form, no random part":      "$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7",
		"long form with later additions": "$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7.rnd.new.newer",
		"the time cannot be parsed":      "$JS.ACK.S.c.2.30.4.x.7",
	} {
		want := want
		if strings.Contains(subject, ".x.") {
			want.Stored = time.Time{}
		}
		if got, err := subjects.ParseAck(subject); err != nil || got != want {
			t.Errorf("%s: ParseAck(%q) = %+v, %v, want %+v", about, subject, got, err, want)
		}
	}
	for about, subject := range map[string]string{
		"nothing":            "",
		"an inbox":           "_INBOX.abc",
		"too short":          "$JS.ACK.S.c.2.30.4.7",
		"between the forms":  "$JS.ACK.x.S.c.2.30.4.1.7",
		"another API":        "$JS.API.S.c.2.30.4.1.7",
		"not a number":       "$JS.ACK.S.c.two.30.4.1.7",
		"a negative number":  "$JS.ACK.S.c.-2.30.4.1.7",
		"a number too large": "$JS.ACK.S.c.2.30.4.1.18446744073709551616",
		"no stream":          "$JS.ACK..c.2.30.4.1.7",
		"a wildcard":         "$JS.ACK.S.c.2.30.4.*.7",
		"a wider wildcard":   "$JS.ACK._.h.S.c.2.30.4.1.7.>",
		"a space":            "$JS.ACK.S.c.2.30.4.1 2.7",
		"a second line":      "$JS.ACK.S.c.2.30.4.1\r\nPUB x 0\r\n.7",
		"no consumer":        "$JS.ACK._.h.S..2.30.4.1.7.r",
	} {
		if got, err := subjects.ParseAck(subject); err == nil {
			t.Errorf("%s: ParseAck(%q) = %+v, want an error", about, subject, got)
		}
	}
}

func TestAckSubjectReadsBack(t *testing.T) {
	s := subjects.AckSubject("S", "c", 30, 4)
	if d, err := subjects.ParseAck(s); err != nil || d.Stream != "S" || d.Consumer != "c" || d.StreamSeq != 30 || d.ConsumerSeq != 4 {
		t.Errorf("ParseAck(%q) = %+v, %v", s, d, err)
	}
}

func FuzzParseAck(f *testing.F) {
	f.Add("$JS.ACK.S.c.2.30.4.1700000000000000000.7")
	f.Add("$JS.ACK._.acchash.S.c.2.30.4.1700000000000000000.7.rnd")
	f.Add("$JS.ACK.........")
	f.Add("")
	f.Fuzz(func(t *testing.T, subject string) {
		d, err := subjects.ParseAck(subject)
		if err != nil {
			return
		}
		if d.Stream == "" || d.Consumer == "" || strings.Contains(d.Stream+d.Consumer, ".") {
			t.Errorf("ParseAck(%q) = %+v", subject, d)
		}
		again, err := subjects.ParseAck(subjects.AckSubject(d.Stream, d.Consumer, d.StreamSeq, d.ConsumerSeq))
		if err != nil || again.StreamSeq != d.StreamSeq || again.Stream != d.Stream || again.Consumer != d.Consumer {
			t.Errorf("%q: its ack subject reads %+v, %v", subject, again, err)
		}
	})
}

func TestNakAfter(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "-NAK", 0: "-NAK", 100 * time.Millisecond: `-NAK {"delay":100000000}`,
	} {
		if got := string(subjects.NakAfter(d)); got != want {
			t.Errorf("NakAfter(%v) = %q, want %q", d, got, want)
		}
	}
}

// A call has what a message of a stream has, and the mark of its attempt; where the broker says that nobody got it names both.
func TestCall(t *testing.T) {
	r := &subjects.Request{ID: subjects.NewID(), Gateway: "g1", Tier: "standard", Model: "m", Pool: "m", Method: "POST", Path: "/tokenize", InputTokens: 1, BodySize: 2}
	for _, mark := range []uint64{0, 1, 1<<64 - 1} {
		m, err := r.Call("w-1", mark, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := subjects.ParseRequest(m)
		if err != nil || got.ID != r.ID || string(m.Data) != "{}" || m.Subject != "pulley.wk.w-1.call" {
			t.Errorf("got %+v, %v on %s", got, err, m.Subject)
		}
		if n, err := subjects.CallAttempt(m); n != mark || err != nil {
			t.Errorf("mark %d, %v, want %d", n, err, mark)
		}
		arg, ours := strings.CutPrefix(m.Reply, subjects.Gateway("g1")+".uncalled.")
		if id, n, err := subjects.ParseUncalled(arg); !ours || id != r.ID || n != mark || err != nil {
			t.Errorf("%s: %v %d, %v", m.Reply, id, n, err)
		}
	}
	for _, arg := range []string{"", ".", "x.1", r.ID.String(), r.ID.String() + ".xyz"} {
		if _, _, err := subjects.ParseUncalled(arg); err == nil {
			t.Errorf("%q was parsed", arg)
		}
	}
	if _, err := subjects.CallAttempt(&nats.Msg{Subject: "s"}); err == nil {
		t.Error("a message without a mark was taken")
	}
}
