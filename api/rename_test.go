package api

import (
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/subjects"
)

func TestRename(t *testing.T) {
	at := func(in subjects.ModelIn, s, name string) subjects.ModelAt {
		i := strings.Index(s, name)
		return subjects.ModelAt{In: in, From: i, To: i + len(name)}
	}
	const (
		chat = `{"temperature":1.0e0, "model" : "gpt-4o" ,"messages":[{"role":"user","content":"gpt-4o?"}]}`
		form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngpt-4o\r\n--x--\r\n"
		path = "/v2/models/gpt-4o/versions/1/infer?a=b"
	)
	for what, c := range map[string]struct {
		body, path string
		at         subjects.ModelAt
		model      string
		wantBody   string
		wantPath   string
	}{
		"in JSON":                        {chat, "/v1/chat/completions", at(subjects.ModelInJSON, chat, `"gpt-4o"`), "llama", strings.Replace(chat, `"gpt-4o"`, `"llama"`, 1), "/v1/chat/completions"},
		"in JSON, with what JSON quotes": {chat, "/", at(subjects.ModelInJSON, chat, `"gpt-4o"`), "a\"b\\c\x01é", strings.Replace(chat, `"gpt-4o"`, `"a\"b\\c\u0001é"`, 1), "/"},
		"in a form":                      {form, "/v1/audio/transcriptions", at(subjects.ModelInForm, form, "gpt-4o"), `whisper "x"`, strings.Replace(form, "gpt-4o", `whisper "x"`, 1), "/v1/audio/transcriptions"},
		"in the path":                    {chat, path, at(subjects.ModelInPath, path, "gpt-4o"), "org/m 1", chat, "/v2/models/org%2Fm%201/versions/1/infer?a=b"},
		"nowhere":                        {chat, path, subjects.ModelAt{}, "llama", chat, path},
		"the engine calls it the same":   {chat, path, subjects.ModelAt{In: "json", From: -1, To: 1 << 40}, "gpt-4o", chat, path},
	} {
		body := []byte(c.body)
		gotPath, got, err := RenameModel(&subjects.Request{Model: "gpt-4o", ModelAt: c.at, Path: c.path}, body, c.model)
		if err != nil || string(got) != c.wantBody || gotPath != c.wantPath {
			t.Errorf("%s:\ngot  %s %s %v\nwant %s %s", what, gotPath, got, err, c.wantPath, c.wantBody)
		}
		if string(body) != c.body {
			t.Errorf("%s: the body itself was changed", what)
		}
	}
}

func TestRenameRefusesWhatCannotBe(t *testing.T) {
	const body, path = `{"model":"gpt-4o"}`, "/v2/models/gpt-4o/infer"
	for what, c := range map[string]struct {
		at    subjects.ModelAt
		model string
	}{
		"before the body":            {subjects.ModelAt{In: "json", From: -1, To: 3}, "m"},
		"after the body":             {subjects.ModelAt{In: "json", From: 9, To: 19}, "m"},
		"backwards":                  {subjects.ModelAt{In: "json", From: 9, To: 3}, "m"},
		"an overflow":                {subjects.ModelAt{In: "form", From: 1 << 62, To: -1 << 62}, "m"},
		"no string":                  {subjects.ModelAt{In: "json", From: 10, To: 16}, "m"},
		"half a string":              {subjects.ModelAt{In: "json", From: 9, To: 10}, "m"},
		"after the path":             {subjects.ModelAt{In: "path", From: 11, To: 30}, "m"},
		"more than a segment":        {subjects.ModelAt{In: "path", From: 4, To: 17}, "m"},
		"a place that nobody knows":  {subjects.ModelAt{In: "header", From: 0, To: 1}, "m"},
		"a name that ends its field": {subjects.ModelAt{In: "form", From: 10, To: 16}, "m\r\n--x"},
	} {
		if path, got, err := RenameModel(&subjects.Request{Model: "gpt-4o", ModelAt: c.at, Path: path}, []byte(body), c.model); err == nil {
			t.Errorf("%s: got %s %s, want an error", what, path, got)
		}
	}
}

func FuzzRename(f *testing.F) {
	f.Add("json", 9, 17, "m", `{"model":"gpt-4o"}`, "/")
	f.Add("path", 11, 17, "m", "", "/v2/models/gpt-4o/infer")
	f.Fuzz(func(t *testing.T, in string, from, to int, model, body, path string) {
		gotPath, got, err := RenameModel(&subjects.Request{Model: "gpt-4o", ModelAt: subjects.ModelAt{In: subjects.ModelIn(in), From: from, To: to}, Path: path}, []byte(body), model)
		if err != nil || in == "" || model == "gpt-4o" {
			return
		}
		whole, was := string(got), body
		if in == "path" {
			whole, was = gotPath, path
		}
		if !strings.HasPrefix(whole, was[:from]) || !strings.HasSuffix(whole, was[to:]) {
			t.Errorf("%q became %q: more than %d to %d has changed", was, whole, from, to)
		}
	})
}
