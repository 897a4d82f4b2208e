package subjects_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/subjects"
)

// names are examples of what people and attackers choose.
var names = map[string]string{
	"empty":               "",
	"plain":               "llama-3",
	"upper case":          "Llama-3",
	"an Ollama tag":       "org/model:tag",
	"dots":                "a.b",
	"only a dot":          ".",
	"wildcards":           "*",
	"full wildcard":       ">",
	"a subject":           "m.shared",
	"another tier":        "x.pulley.req.priority.m.shared",
	"space":               "a b",
	"trailing space":      "m ",
	"tab, CR, LF":         "a\tb\r\nPUB x 1",
	"nul":                 "a\x00b",
	"escape byte":         "_",
	"looks escaped":       "_2E",
	"looks escaped twice": "_5F2E",
	"lower-case escape":   "_2e",
	"consumer separator":  "a=shared",
	"consumer hash":       "hash",
	"unicode":             "ü ñ",
	"composed":            "\u00e9",
	"decomposed":          "e\u0301",
	"invalid UTF-8":       "\xff\xfe",
	"DEL":                 "\x7f",
	"dollar":              "$JS.API.STREAM.DELETE.x",
	"slashes":             "../../etc/passwd",
	"256 bytes":           strings.Repeat("x", 256),
	"256 odd bytes":       strings.Repeat(".", 256),
	"256 other odd bytes": strings.Repeat(".", 255) + "*",
}

func allNames() []string { return slices.Sorted(maps.Values(names)) }

// oneToken returns why a string is not one literal token of a subject, or "".
func oneToken(s string) string {
	if s == "" {
		return "it is empty"
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.' || c == '*' || c == '>':
			return "it has a dot or a wildcard"
		case c <= ' ' || c >= 0x7f:
			return "it has a byte outside of printable ASCII"
		case c == '/' || c == '\\':
			return "it has a path separator"
		}
	}
	return ""
}

func checkName(t *testing.T, name string) {
	t.Helper()
	token := subjects.Token(name)
	if why := oneToken(token); why != "" {
		t.Errorf("Token(%q) = %q: %s", name, token, why)
	}
	back, err := subjects.Untoken(token)
	if err != nil || back != name {
		t.Errorf("Untoken(Token(%q)) = %q, %v", name, back, err)
	}
	for _, lane := range []string{subjects.Shared, name} {
		s := subjects.Req("standard", name, lane)
		if got := strings.Split(s, "."); len(got) != 5 || strings.Join(got[:3], ".") != "pulley.req.standard" ||
			got[3] != token || got[4] != subjects.Token(lane) {
			t.Errorf("Req(standard, %q, %q) = %q", name, lane, s)
		}
		c := subjects.ReqConsumer(name, lane)
		if why := oneToken(c); why != "" || len(c) > 255 {
			t.Errorf("ReqConsumer(%q, %q) = %q of %d bytes %s", name, lane, c, len(c), why)
		}
		if b := subjects.BidSubject("standard", name, lane); strings.Count(b, ".") != 6 {
			t.Errorf("BidSubject(standard, %q, %q) = %q", name, lane, b)
		}
	}
	if d := subjects.Dead("standard", name); strings.Count(d, ".") != 3 {
		t.Errorf("Dead(standard, %q) = %q", name, d)
	}
}

func TestNamesCannotEscape(t *testing.T) {
	for about, name := range names {
		t.Run(about, func(t *testing.T) { checkName(t, name) })
	}
}

// No two queues share a subject or a consumer.
func TestNamesStayApart(t *testing.T) {
	type queue struct{ pool, lane string }
	subjectOf, consumerOf := make(map[string]queue), make(map[string]queue)
	lanes := append(allNames(), subjects.Shared)
	for _, pool := range allNames() {
		for _, lane := range lanes {
			q := queue{pool, lane}
			s, c := subjects.Req("standard", pool, lane), subjects.ReqConsumer(pool, lane)
			if other, ok := subjectOf[s]; ok {
				t.Errorf("%q and %q share subject %q", other, q, s)
			}
			if other, ok := consumerOf[c]; ok {
				t.Errorf("%q and %q share consumer %q", other, q, c)
			}
			subjectOf[s], consumerOf[c] = q, q
		}
	}
	// The consumer of a name that was hashed is not another name's consumer.
	long := subjects.ReqConsumer(strings.Repeat("x", 256), subjects.Shared)
	if pool, lane, ok := strings.Cut(long, "="); ok {
		if p, err := subjects.Untoken(pool); err == nil {
			if l, err := subjects.Untoken(lane); err == nil {
				t.Errorf("a long name's consumer is that of pool %q, lane %q", p, l)
			}
		}
	}
}

func TestUntokenRefuses(t *testing.T) {
	for about, token := range map[string]string{
		"nothing":                  "",
		"a dot":                    "a.b",
		"a wildcard":               "*",
		"a space":                  "a b",
		"a letter that is escaped": "_61",
		"a digit that is escaped":  "_30",
		"a dash that is escaped":   "_2D",
		"lower-case hex":           "_2e",
		"no hex":                   "_G0",
		"a cut escape":             "a_2",
		"a bare escape":            "a_",
		"two empties":              "__",
		"unicode":                  "ü",
	} {
		if name, err := subjects.Untoken(token); err == nil {
			t.Errorf("%s: Untoken(%q) = %q, want an error", about, token, name)
		}
	}
}

func TestTierOf(t *testing.T) {
	for _, tier := range []string{"standard", "batch", "tier-2", "0"} {
		if got := subjects.TierOf(subjects.ReqStream(tier)); got != tier {
			t.Errorf("TierOf(ReqStream(%q)) = %q", tier, got)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a.c", false}, {"a.b", "a.b.c", false}, {"a.b.c", "a.b", false},
		{"a.*", "a.b", true}, {"a.*", "a", false}, {"a.*", "a.b.c", false}, {"a.*.c", "a.b.c", true}, {"a.*.c", "a.b.d", false},
		{"a.>", "a.b", true}, {"a.>", "a.b.c", true}, {"a.>", "a", false}, {"a.>", "b.c", false}, {">", "a.b", true},
		{subjects.AllGateways, "pulley.gw.g.ref", true}, {subjects.AllGateways, "pulley.req.standard.m.shared", false},
		{subjects.AllHeartbeats, subjects.Heartbeats("w"), true}, {subjects.AllHeartbeats, "pulley.req.standard.m.w", false},
	} {
		if got := subjects.Match(c.pattern, c.subject); got != c.want {
			t.Errorf("Match(%q, %q) = %t", c.pattern, c.subject, got)
		}
	}
}

func TestMayAnswer(t *testing.T) {
	for reply, want := range map[string]bool{
		"_INBOX.abc.def": true, "_INBOX_operator.abc": true, "_R_.abc.def": true, "answers": true,
		"": false, "$JS.API.STREAM.DELETE.S": false, "$JS.ACK.S.c.1.1.1.1.0": false, "$KV.B.k": false, "$SYS.REQ": false,
		"pulley.policy": false, "pulley.wk.w.drain": false, "_INBOX.>": false, "_INBOX.a b": false, "_INBOX.a\r\nPUB": false,
	} {
		if got := subjects.MayAnswer(reply); got != want {
			t.Errorf("MayAnswer(%q) = %t", reply, got)
		}
	}
}

func TestLastToken(t *testing.T) {
	for subject, want := range map[string]string{"a.b.c": "c", "a": "a", "": "", "a.": ""} {
		if got := subjects.LastToken(subject); got != want {
			t.Errorf("LastToken(%q) = %q, want %q", subject, got, want)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, a := range allNames() {
		f.Add(a, a+"x")
	}
	f.Add("a", "_61")
	f.Add("hash", "=")
	f.Fuzz(func(t *testing.T, a, b string) {
		checkName(t, a)
		if a != b {
			if subjects.Token(a) == subjects.Token(b) {
				t.Errorf("%q and %q share token %q", a, b, subjects.Token(a))
			}
			if subjects.ReqConsumer(a, b) == subjects.ReqConsumer(b, a) {
				t.Errorf("pool %q lane %q and the reverse share a consumer", a, b)
			}
			if subjects.ReqConsumer(a, subjects.Shared) == subjects.ReqConsumer(b, subjects.Shared) {
				t.Errorf("%q and %q share a consumer", a, b)
			}
		}
		// b as a token is refused, or is the only way to write its name.
		if name, err := subjects.Untoken(b); err == nil && subjects.Token(name) != b {
			t.Errorf("Untoken(%q) = %q, whose token is %q", b, name, subjects.Token(name))
		}
	})
}
