package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// chat scans a request of a conversation.
func chat(t *testing.T, path, body string) *Call {
	t.Helper()
	c, err := scanOf(path, body)
	if err != nil {
		t.Fatalf("%.200s: %v", body, err)
	}
	return &c
}

// sharedMessages is how many messages a follow-up shares with the request that it follows; 0: it is
// not a follow-up.
func sharedMessages(later, earlier *Call) int {
	whole, n := earlier.ConversationHash(), len(later.prefix)
	if whole == 0 {
		return 0
	}
	for prefix := range later.PrefixHashes {
		if n--; prefix == whole {
			return n
		}
	}
	return 0
}

func TestConversationFollows(t *testing.T) {
	const openAI, claude, responses = "/v1/chat/completions", "/v1/messages", "/v1/responses"
	for about, c := range map[string]struct {
		path           string
		earlier, later string
		want           int // messages shared; 0: not a follow-up
	}{
		"the next turn": {openAI,
			`{"model":"m","messages":[{"role":"user","content":"a"}]}`,
			`{"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}`, 1},
		"two turns later": {openAI,
			`{"model":"m","messages":["s","u"]}`,
			`{"model":"m","messages":["s","u","a","u","a","u"]}`, 2},
		"the same again is none":          {openAI, `{"model":"m","messages":["s","u"]}`, `{"model":"m","messages":["s","u"]}`, 0},
		"a shared system prompt is none":  {openAI, `{"model":"m","messages":["s","u"]}`, `{"model":"m","messages":["s","v"]}`, 0},
		"a fork is none":                  {openAI, `{"model":"m","messages":["s","u","a","u"]}`, `{"model":"m","messages":["s","u","b","u","a"]}`, 0},
		"an earlier turn is none":         {openAI, `{"model":"m","messages":["s","u","a","u"]}`, `{"model":"m","messages":["s","u"]}`, 0},
		"the order counts":                {openAI, `{"model":"m","messages":["a","b"]}`, `{"model":"m","messages":["b","a","c"]}`, 0},
		"where messages end counts":       {openAI, `{"model":"m","messages":["a","b"]}`, `{"model":"m","messages":["a\",\"b","c"]}`, 0},
		"no messages":                     {openAI, `{"model":"m","messages":[]}`, `{"model":"m","messages":["a","b"]}`, 0},
		"white space between messages":    {openAI, `{"model":"m","messages":["a","b"]}`, "{\"messages\" :\n[ \"a\" ,\r\n\t\"b\", \"c\" ] ,\"model\":\"m\"}", 2},
		"white space in a message":        {openAI, `{"model":"m","messages":[{"a":1}]}`, `{"model":"m","messages":[{"a": 1},"c"]}`, 0},
		"other fields do not count":       {openAI, `{"model":"m","messages":["a"],"max_tokens":5,"user":"x"}`, `{"temperature":1,"messages":["a","b"],"model":"n"}`, 1},
		"tools count":                     {openAI, `{"model":"m","messages":["a"],"tools":[1]}`, `{"model":"m","messages":["a","b"],"tools":[2]}`, 0},
		"tools wherever they stand":       {openAI, `{"tools":[1],"model":"m","messages":["a"],"functions":[2]}`, `{"functions":[2],"model":"m","messages":["a","b"],"tools":[1]}`, 1},
		"tools are not functions":         {openAI, `{"tools":[1],"model":"m","messages":["a"]}`, `{"functions":[1],"model":"m","messages":["a","b"]}`, 0},
		"null is absent":                  {openAI, `{"tools":null,"model":"m","messages":["a"]}`, `{"model":"m","messages":["a","b"]}`, 1},
		"Anthropic's system":              {claude, `{"system":"s","model":"m","messages":["a"]}`, `{"model":"m","messages":["a","b"],"system":"s"}`, 1},
		"another system":                  {claude, `{"system":"s","model":"m","messages":["a"]}`, `{"model":"m","messages":["a","b"],"system":"t"}`, 0},
		"Responses":                       {responses, `{"model":"m","instructions":"i","input":["a"]}`, `{"model":"m","input":["a","b"],"instructions":"i"}`, 1},
		"Responses that goes on with one": {responses, `{"model":"m","previous_response_id":"1","input":["a"]}`, `{"model":"m","previous_response_id":"2","input":["a","b"]}`, 0},
		"Responses of one string":         {responses, `{"model":"m","input":"a"}`, `{"model":"m","input":["a","b"]}`, 0},
		"input elsewhere is not a chat":   {"/v1/embeddings", `{"model":"m","input":["a"]}`, `{"model":"m","input":["a","b"]}`, 0},
		"messages are not Responses":      {responses, `{"model":"m","messages":["a"]}`, `{"model":"m","messages":["a","b"]}`, 0},
		"a field's name in another case":  {openAI, `{"model":"m","Messages":["a"]}`, `{"model":"m","Messages":["a","b"]}`, 0},
		"a field's name escaped":          {openAI, `{"model":"m","messages":["a"]}`, `{"model":"m","m\u0065ssages":["a","b"]}`, 1},
		"messages that are none":          {openAI, `{"model":"m","messages":{"a":["b"]}}`, `{"model":"m","messages":"a"}`, 0},
		"a request of a prompt alone":     {openAI, `{"model":"m","messages":["s"]}`, `{"model":"m","messages":["s","u"]}`, 1},
		"a mark for the cache moves on": {claude,
			`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]}]}`,
			`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"user","content":[{"cache_control":{"type":"ephemeral"},"type":"text","text":"b"}]}]}`, 1},
		"a mark that comes first": {claude,
			`{"model":"m","messages":[{"cache_control" : {"type":"ephemeral"} , "a":"b"}]}`,
			`{"model":"m","messages":[{ "a":"b"},"c"]}`, 1},
		"a mark that comes first, close": {claude, `{"model":"m","messages":[{"cache_control":null,"a":"b"}]}`, `{"model":"m","messages":[{"a":"b"},"c"]}`, 1},
		"a mark alone":                   {claude, `{"model":"m","messages":[{"cache_control":[1,{"a":2}]}]}`, `{"model":"m","messages":[{},"c"]}`, 1},
		"marks in the system":            {claude, `{"model":"m","system":[{"a":1,"cache_control":{}}],"messages":["a"]}`, `{"model":"m","system":[{"a":1}],"messages":["a","b"]}`, 1},
		"the word in a string":           {claude, `{"model":"m","messages":["\"cache_control\":{},a"]}`, `{"model":"m","messages":["a","c"]}`, 0},
		"the word at a string's end":     {claude, `{"model":"m","messages":[{"a":"\"cache_control"}]}`, `{"model":"m","messages":[{"a":"\"cache_control"},"c"]}`, 1},
		"the word as a value":            {claude, `{"model":"m","messages":[{"cache_control":1,"a":["cache_control","b"]}]}`, `{"model":"m","messages":[{"a":["cache_control","b"]},"c"]}`, 1},
		"a field twice, the last null":   {openAI, `{"model":"m","system":"s","messages":["a"],"system":null}`, `{"model":"m","messages":["a","b"]}`, 1},
	} {
		t.Run(about, func(t *testing.T) {
			if got := sharedMessages(chat(t, c.path, c.later), chat(t, c.path, c.earlier)); got != c.want {
				t.Errorf("shares %d messages, want %d", got, c.want)
			}
		})
	}
}

// A conversation of any length can continue, and its chain stays bounded.
func TestConversationLong(t *testing.T) {
	body := func(messages int) string {
		var b strings.Builder
		for i := range messages {
			fmt.Fprintf(&b, `,{"content":%d}`, i)
		}
		return `{"model":"m","messages":[` + b.String()[1:] + `]}`
	}
	for n := 1; n < 3*maxPrefix; n += 13 {
		earlier, later := chat(t, "/v1/chat/completions", body(n)), chat(t, "/v1/chat/completions", body(n+2))
		if sharedMessages(later, earlier) == 0 {
			t.Fatalf("%d messages are not found in %d", n, n+2)
		}
		if want := min(n, maxPrefix/2); len(earlier.prefix) < want || len(earlier.prefix) > maxPrefix {
			t.Fatalf("%d messages make a chain of %d", n, len(earlier.prefix))
		}
	}
}

// The hashes are the same in every gateway and in every version that shares affinity with this one.
func TestConversationIsStable(t *testing.T) {
	c := chat(t, "/v1/chat/completions", `{"model":"m","tools":[{"a":1}],"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}`)
	if want := []uint64{0x8487e3721d4bc88e, 0xd799f6c0e6a163}; !slices.Equal(c.prefix, want) {
		t.Errorf("got %#x, want %#x", c.prefix, want)
	}
}

// FuzzConversation compares the chain with one made from encoding/json's reading.
func FuzzConversation(f *testing.F) {
	for _, s := range []string{`[]`, `["a"]`, ` [ "a" , {"b":[1,2]} ] `, `[[["a"]],null]`, `{}`, `"a"`, `["é\u00e9\\"]`, "[\"\xff\"]"} {
		f.Add([]byte(s), []byte(`{"a":1}`))
	}
	f.Fuzz(func(t *testing.T, messages, tools []byte) {
		body := slices.Concat([]byte(`{"messages":`), messages, []byte(`,"tools":`), tools, []byte(`,"model":"m"}`))
		c, err := scanJSON(body, "messages")
		var fields map[string]json.RawMessage
		if err != nil || json.Unmarshal(body, &fields) != nil || len(fields) != 3 || bytes.Contains(body, []byte("cache_control")) {
			return
		}
		var each []json.RawMessage
		if json.Unmarshal(fields["messages"], &each) != nil || len(each) > maxPrefix {
			return
		}
		var sofar []byte
		var plain []uint64
		for _, m := range each {
			sofar = append(append(sofar, m...), ',')
			plain = append(plain, xxhash.Sum64(sofar))
		}
		if len(c.prefix) != len(plain) {
			t.Fatalf("%q: chain of %d for %d messages", body, len(c.prefix), len(plain))
		}
		for i, a := range plain {
			for j, b := range plain {
				if (a == b) != (c.prefix[i] == c.prefix[j]) {
					t.Errorf("%q: prefixes %d and %d: equal %t, want %t", body, i, j, c.prefix[i] == c.prefix[j], a == b)
				}
			}
		}
		if same, err := scanJSON(slices.Concat([]byte(`{"model":"n","tools":`), tools, []byte(`,"messages":`), messages, []byte("}")), "messages"); err != nil || !slices.Equal(c.prefix, same.prefix) {
			t.Errorf("%q: another order makes another chain (%v)", body, err)
		}
	})
}
