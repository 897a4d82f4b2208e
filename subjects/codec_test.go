package subjects

import (
	"math"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
)

// byHand lists the messages that are written and read by hand, with the functions that do it.
var byHand = []struct {
	name  string
	empty func() any
	build func(any) builder
	read  func(text string, to any) bool
}{
	{"request", func() any { return new(Request) },
		func(v any) (b builder) { v.(*Request).build(&b); return b },
		func(text string, to any) bool { return to.(*Request).read(text) }},
	{"claim", func() any { return new(Claim) },
		func(v any) (b builder) { b.buf, b.err = v.(*Claim).Bytes(); return b },
		func(text string, to any) bool { return to.(*Claim).read(text) }},
	{"head", func() any { return new(Head) },
		func(v any) (b builder) { v.(*Head).build(&b); return b },
		func(text string, to any) bool { return to.(*Head).read(text) }},
	{"end", func() any { return new(End) },
		func(v any) (b builder) { v.(*End).build(&b); return b },
		func(text string, to any) bool { return to.(*End).read(text) }},
	{"fail", func() any { return new(Fail) },
		func(v any) (b builder) { v.(*Fail).build(&b); return b },
		func(string, any) bool { return false }},
}

// What is written by hand is exactly what the library would have written, with every field, and it
// is read by hand. Otherwise the fast path would be lost without a failure.
func TestByHandIsAsTheLibrary(t *testing.T) {
	header := http.Header{"Content-Type": {"application/json", "x"}}
	for _, v := range []any{
		&Request{},
		&Request{ID: NewID(), Gateway: "gw", Tenant: "t", Tier: "standard", Model: "m:7b", ModelAt: ModelAt{ModelInJSON, 1, 9}, AdapterOf: "base", Pool: "p", Deadline: math.MaxInt64, Method: "POST",
			Path: "/v1?a=<b>&c=d", Header: header, Stream: true, InputTokens: 3, MaxOutput: 500, BodySize: 12, ByReference: true},
		&Claim{}, &Claim{ID: NewID(), Attempt: math.MaxUint64, Worker: "w-1", Name: "w", Ack: "$JS.ACK.S.c.2.30.4.1700000000000000000.7", Rung: 7, Confirm: true},
		&Head{}, &Head{Status: 200, Header: header, Length: -1},
		&End{}, &End{OutputTokens: 100, InputTokens: 16, CachedTokens: 4, CachedApart: true},
	} {
		want, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range byHand {
			if reflect.TypeOf(m.empty()) != reflect.TypeOf(v) {
				continue
			}
			if at := reflect.ValueOf(v).Elem(); !at.IsZero() {
				for i := range at.NumField() {
					if at.Field(i).IsZero() {
						t.Errorf("%s: the test knows nothing of its field %s", m.name, at.Type().Field(i).Name)
					}
				}
			}
			if got := m.build(v); string(got.buf) != string(want) || got.err != nil {
				t.Errorf("%s written by hand:\n%s, %v, by the library:\n%s", m.name, got.buf, got.err, want)
			}
			again := m.empty()
			if !m.read(string(want), again) {
				t.Errorf("%s is not read by hand: %s", m.name, want)
			}
			wantAgain := m.empty()
			if err := json.Unmarshal(want, wantAgain); err != nil || !reflect.DeepEqual(again, wantAgain) {
				t.Errorf("%s read by hand:\n%+v, by the library:\n%+v, %v", m.name, again, wantAgain, err)
			}
		}
	}
}

// FuzzByHand reads any text as each of the messages: whatever is read by hand, the library reads as
// the same, and what was read is written so that the library reads it back.
func FuzzByHand(f *testing.F) {
	for _, v := range []any{
		&Request{ID: NewID(), Tenant: "t", Tier: "s", ModelAt: ModelAt{ModelInJSON, 1, 9}, Path: "/", Header: http.Header{"A": {"b", "c"}, "D": {""}}},
		&Claim{Attempt: 7}, &Head{Status: 200, Header: http.Header{"A": {"b"}}}, &End{OutputTokens: 15}, &Fail{Answer: &Head{}, Body: []byte("x")},
	} {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(`{"status":-0,"header":{},"length":007}`)
	f.Add(`{"status":1,"header":{"A":["b"],"A":["c"]},"length":1}`)
	f.Add(`{"output_tokens":9223372036854775808,"input_tokens":0}`)
	f.Fuzz(func(t *testing.T, text string) {
		for _, m := range byHand {
			got, want := m.empty(), m.empty()
			err := json.Unmarshal([]byte(text), want)
			if m.read(text, got) && (err != nil || !reflect.DeepEqual(got, want)) {
				t.Errorf("%s %q read by hand:\n%+v, by the library:\n%+v, %v", m.name, text, got, want, err)
			}
			if err != nil {
				continue
			}
			built, again := m.build(want), m.empty()
			if built.err != nil || json.Unmarshal(built.buf, again) != nil {
				t.Fatalf("%s %q written by hand: %s, %v", m.name, text, built.buf, built.err)
			}
			// Header values are bytes; the text has their code points.
			for _, v := range []any{want, again} {
				asBytes(v)
			}
			if !reflect.DeepEqual(again, want) {
				t.Errorf("%s %q written by hand: %s", m.name, text, built.buf)
			}
		}
	})
}

func BenchmarkRequest(b *testing.B) {
	r := &Request{ID: NewID(), Gateway: "0123456789ab", Tier: "standard", Model: "sim", ModelAt: ModelAt{ModelInJSON, 9, 14}, Pool: "sim", Deadline: 1700000000000, Method: "POST", Path: "/v1/chat/completions",
		Header: http.Header{"Content-Type": {"application/json"}, "User-Agent": {"Go-http-client/1.1"}, "X-Request-Id": {NewID().String()}}, InputTokens: 30, BodySize: 120}
	b.ReportAllocs()
	for b.Loop() {
		m, err := r.Msg(Shared, nil, 0)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ParseRequest(&nats.Msg{Header: m.Header}); err != nil {
			b.Fatal(err)
		}
	}
}

func asBytes(v any) {
	switch v := v.(type) {
	case *Request:
		toBytes(&v.Header)
	case *Head:
		toBytes(&v.Header)
	case *Fail:
		v.Reason = strings.ToValidUTF8(v.Reason, "\ufffd")
		if len(v.Body) == 0 {
			v.Body = nil
		}
		if v.Answer != nil {
			toBytes(&v.Answer.Header)
		}
	}
}

func toBytes(h *http.Header) {
	if len(*h) == 0 {
		*h = nil
	}
	fromWire(*h)
}

// The rules that doc.go promises for every message except frames.
func TestJSONRules(t *testing.T) {
	b, err := Marshal(UsageReport{Gateway: "g\xff", Keys: map[string]KeyUsage{"b": {Requests: 1}, "a": {}}})
	if want := `{"gw":"g` + "\ufffd" + `","keys":{"a":{"r":0,"t":0,"c":0},"b":{"r":1,"t":0,"c":0}}}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
	for text, ok := range map[string]bool{
		`{"keys":{},"gw":"g"}`:           true,
		`{"gw":"g","new_field":{"a":1}}`: true,
		`{"gw":"g","gw":"g"}`:            false,
		"{\"gw\":\"\xff\"}":              false,
		`{"gw":"g"} x`:                   false,
	} {
		var r UsageReport
		if err := Unmarshal([]byte(text), &r); (err == nil) != ok || ok && r.Gateway != "g" {
			t.Errorf("%s: got %+v, %v, want it to be accepted: %t", text, r, err, ok)
		}
	}
	var r UsageReport
	if err := Unmarshal([]byte(`{"GW":"g"}`), &r); err != nil || r.Gateway != "" {
		t.Errorf("a name in another case: got %+v, %v, want it to be ignored", r, err)
	}
}
