package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

// withDefault scans a body that names no model and writes one into it.
func withDefault(contentType, body, model string) (Call, string, error) {
	r := httptest.NewRequest("POST", "/v1/chat/completions", nil)
	r.Header.Set("Content-Type", contentType)
	c, err := Scan(r, []byte(body))
	if !errors.Is(err, ErrNoModel) {
		return c, body, err
	}
	out, err := c.WithModel(r.Header, []byte(body), model)
	return c, string(out), err
}

func TestWithModel(t *testing.T) {
	const model = `org/m "7b" ü`
	quoted := string(jsonString(model))
	for body, want := range map[string]string{
		`{}`:                                    `{"model":` + quoted + `}`,
		` { } `:                                 ` {"model":` + quoted + ` } `,
		`{"a":1}`:                               `{"model":` + quoted + `,"a":1}`,
		"\ufeff{\n\"a\":1}":                     "\ufeff{" + `"model":` + quoted + ",\n\"a\":1}",
		`{"a":1,"model":null}`:                  `{"a":1,"model":` + quoted + `}`,
		`{"model": "" ,"service_tier":"batch"}`: `{"model": ` + quoted + ` ,"service_tier":"batch"}`,
		`{"service_tier":"batch","model":null}`: `{"service_tier":"batch","model":` + quoted + `}`,
		`{"service_tier":"batch","b":{"model":1}}`: `{"model":` + quoted + `,"service_tier":"batch","b":{"model":1}}`,
	} {
		c, got, err := withDefault("application/json", body, model)
		if err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", body, got, err, want)
			continue
		}
		wantPlaces(t, c, got)
		if again, err := scanOf("/v1/chat/completions", got); err != nil || again.said() != c.said() {
			t.Errorf("%s: is read as %+v, %v, want %+v", got, again.said(), err, c.said())
		}
		if tiered := string(c.WithEngineTier([]byte(got))); strings.Contains(got, "batch") && (!strings.Contains(tiered, `"service_tier":"auto"`) || !json.Valid(bytes.TrimPrefix([]byte(tiered), byteOrderMark))) {
			t.Errorf("%s: with the engine's tier %s", got, tiered)
		}
	}
	for _, body := range []string{`{"MODEL":"x"}`, `{"mOdel":null}`} { // some engines read these
		if c, got, err := withDefault("application/json", body, model); !errors.Is(err, ErrNoModel) {
			t.Errorf("%s: got %+v, %s, %v, want none", body, c, got, err)
		}
	}
}

func TestWithModelInAForm(t *testing.T) {
	for about, fields := range map[string][]string{
		"none": {"file", "file:abc\r\n--x"}, "only a file field": {"prompt", "hi"}, "empty": {"file", "file:abc", "model", ""}, "empty and first": {"model", "", "language", ""},
	} {
		body, ct := form(t, fields...)
		c, got, err := withDefault(ct, body, "whisper")
		if err != nil {
			t.Errorf("%s: %v", about, err)
			continue
		}
		if at := got[c.ModelAt.From:c.ModelAt.To]; at != "whisper" || c.Model != "whisper" {
			t.Errorf("%s: the model %q is at %q", about, c.Model, at)
		}
		if was, is := parts(t, ct, body), parts(t, ct, got); is["model"] != "whisper" || !reflect.DeepEqual(without(was, "model"), without(is, "model")) {
			t.Errorf("%s: %q became %q", about, was, is)
		}
	}
	for about, c := range map[string][2]string{
		"a preamble": {"multipart/form-data; boundary=B", "hello\r\n--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B--"},
		"no part":    {"multipart/form-data; boundary=B", "--B--"},
	} {
		if _, got, err := withDefault(c[0], c[1], "m"); !errors.Is(err, ErrNoModel) {
			t.Errorf("%s: got %q, %v", about, got, err)
		}
	}
}

func without(m map[string]string, name string) map[string]string { delete(m, name); return m }

func parts(t *testing.T, contentType, body string) map[string]string {
	t.Helper()
	_, params, _ := mime.ParseMediaType(contentType)
	all := make(map[string]string)
	for r := multipart.NewReader(strings.NewReader(body), params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		b, _ := io.ReadAll(p)
		all[p.FormName()] = string(b)
	}
}

// FuzzWithModel writes a model into any body: encoding/json then reads that model, and all else as before.
func FuzzWithModel(f *testing.F) {
	for _, s := range []string{`{}`, `{"model":null}`, `{"model":""}`, `{"a":{"model":"x"}}`, "\ufeff { \"stream\" :true}", `{"service_tier":"batch","x":"{"}`, `{"Model":null}`} {
		f.Add([]byte(s), "m")
	}
	f.Add([]byte(`{}`), "\xa8")
	f.Fuzz(func(t *testing.T, body []byte, model string) {
		if model == "" || len(model) > 256 {
			return
		}
		c, got, err := withDefault("application/json", string(body), model)
		if err != nil || got == string(body) {
			return
		}
		wantPlaces(t, c, got)
		r := httptest.NewRequest("POST", "/v1/chat/completions", nil)
		r.Header.Set("Content-Type", "application/json")
		if again, err := Scan(r, []byte(got)); err != nil || again.Model != strings.ToValidUTF8(model, "\ufffd") {
			t.Fatalf("%q became %q, which is read as %+v, %v", body, got, again, err)
		}
		var was, is map[string]json.RawMessage
		if json.Unmarshal(strictJSON(body), &was) != nil || json.Unmarshal(strictJSON([]byte(got)), &is) != nil {
			t.Fatalf("%q became %q", body, got)
		}
		delete(was, "model")
		delete(is, "model")
		if len(was) != len(is) {
			t.Fatalf("%q became %q", body, got)
		}
		for name, v := range was {
			if !bytes.Equal(v, is[name]) {
				t.Errorf("%q became %q: %s was %s, is %s", body, got, name, v, is[name])
			}
		}
	})
}
