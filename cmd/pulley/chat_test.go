package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

// chatServer answers each prompt with the number of messages before it, and what the test says otherwise.
func chatServer(t *testing.T, models ...string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			var data []string
			for _, m := range models {
				data = append(data, fmt.Sprintf(`{"id":%q}`, m))
			}
			fmt.Fprintf(w, `{"object":"list","data":[%s]}`, strings.Join(data, ","))
			return
		}
		var in struct {
			Model       string
			Stream      bool
			MaxTokens   int    `json:"max_tokens"`
			ServiceTier string `json:"service_tier"`
			Messages    []chatMessage
		}
		b, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(b, &in); err != nil || !in.Stream {
			t.Errorf("%v: %s", err, b)
		}
		last := in.Messages[len(in.Messages)-1].Content
		refuse := func(status int, message string) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"error":{"message":%q}}`, message)
		}
		switch {
		case in.Model == "nosuch":
			refuse(404, `The model "nosuch" does not exist; there are: llama.`)
		case last == "key" && r.Header.Get("Authorization") != "Bearer secret":
			refuse(401, "A key is required.")
		case last == "busy":
			refuse(429, "The queue is full.")
		case last == "fail":
			refuse(502, "Every attempt failed.")
		default:
			fmt.Fprintf(w, ": queued position=3\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n")
			fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"%d before\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\": %s %s%d\"}}]}\n\n", len(in.Messages)-1, last, in.ServiceTier, in.MaxTokens)
			switch last {
			case "break":
				return
			case "error":
				fmt.Fprint(w, "data: {\"error\":{\"message\":\"the worker died\"}}\n\n")
			default:
				fmt.Fprint(w, "data: {\"choices\":[]}\n\ndata: [DONE]\n\n")
			}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func TestChat(t *testing.T) {
	one, two := chatServer(t, "llama"), chatServer(t, "llama", "qwen")
	for about, tt := range map[string]struct {
		url    string
		args   string
		in     string
		key    string
		code   int
		out    string
		stderr string
	}{
		"one prompt":          {one.URL, "llama hello", "", "", 0, "0 before: hello 0\n", ""},
		"a prompt of words":   {one.URL, "llama hello you --max-tokens 5 --tier batch", "", "", 0, "0 before: hello you batch5\n", ""},
		"a URL with /v1":      {one.URL + "/v1/", "llama hello", "", "", 0, "0 before: hello 0\n", ""},
		"a conversation":      {one.URL, "llama --system Latin", "hello\n\nbye\n", "", 0, "1 before: hello 0\n3 before: bye 0\n", ""},
		"a last line":         {one.URL, "llama", "hello", "", 0, "0 before: hello 0\n", ""},
		"nothing":             {one.URL, "llama", "", "", 0, "", ""},
		"the only model":      {one.URL, "", "hello\n", "", 0, "0 before: hello 0\n", ""},
		"which model":         {two.URL, "", "hello\n", "", 2, "", "missing argument: MODEL, one of llama or qwen"},
		"no such model":       {one.URL, "nosuch hello", "", "", 3, "", `The model "nosuch" does not exist; there are: llama.`},
		"a key":               {one.URL, "llama key", "", "secret", 0, "0 before: key 0\n", ""},
		"no key":              {one.URL, "llama key", "", "", 4, "", "A key is required; set $OPENAI_API_KEY to a key"},
		"busy":                {one.URL, "llama busy", "", "", 4, "", "The queue is full."},
		"failed":              {one.URL, "llama fail", "", "", 1, "", "status 502: Every attempt failed."},
		"broken":              {one.URL, "llama break", "", "", 1, "0 before: break 0\n", "the answer broke off"},
		"an error at the end": {one.URL, "llama error", "", "", 1, "0 before: error 0\n", "the worker died"},
		"no gateway":          {"http://127.0.0.1:1", "llama hello", "", "", 1, "", "cannot connect to 127.0.0.1:1: connection refused; is 'pulley up' or 'pulley gateway' running?"},
		"no URL":              {"::", "llama hello", "", "", 2, "", `--url "::": must be a URL`},
	} {
		t.Run(about, func(t *testing.T) {
			t.Setenv("OPENAI_API_KEY", tt.key)
			root := newRootCommand()
			root.SetIn(strings.NewReader(tt.in))
			code, stdout, stderr := clitest.Run(root, append([]string{"chat", "--url", tt.url}, strings.Fields(tt.args)...)...)
			if code != tt.code || stdout != tt.out || !strings.Contains(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
				t.Errorf("exit code %d, %q, %q; want %d, %q, %q", code, stdout, stderr, tt.code, tt.out, tt.stderr)
			}
		})
	}
}
