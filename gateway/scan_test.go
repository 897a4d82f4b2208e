package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
)

// scanOf scans a body as if it had come to path; header is name, value, ….
func scanOf(path, body string, header ...string) (call, error) {
	r := httptest.NewRequest("POST", path, nil)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return scan(r, []byte(body))
}

// wantRefusal checks that err is a client error, in a form that every SDK can read.
func wantRefusal(t *testing.T, err error, status int, param string) {
	t.Helper()
	if err == nil {
		t.Fatalf("passed, want %d", status)
	}
	e, ok := err.(*Error)
	if !ok || e.Status != status || e.Param != param {
		t.Fatalf("got %#v, want status %d and param %q", err, status, param)
	}
	for _, d := range []dialect{openAI, responsesAPI, anthropic, plain} {
		var b struct{ Error map[string]any }
		if err := json.Unmarshal(e.body(d, "id"), &b); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"message", "type", "param", "code"} {
			if _, ok := b.Error[key]; !ok || len(b.Error) != 4 {
				t.Errorf("error %v: want exactly message, type, param, code", b.Error)
			}
		}
		if len(b.Error["message"].(string)) > 1000 {
			t.Errorf("a message of %d bytes", len(b.Error["message"].(string)))
		}
	}
}

func TestScanPasses(t *testing.T) {
	for about, c := range map[string]struct {
		body string
		want call
	}{
		"the least":                  {`{"model":"m"}`, call{model: "m"}},
		"white space":                {" \t\r\n{ \"model\" : \"m\" } \n", call{model: "m"}},
		"model last":                 {`{"messages":[{"model":"x"}],"a":{"model":"y"},"model":"m"}`, call{model: "m"}},
		"all fields":                 {`{"service_tier":"flex","stream":true,"model":"m"}`, call{model: "m", stream: true, tier: "flex"}},
		"nulls are absent":           {`{"stream":null,"service_tier":null,"model":"m"}`, call{model: "m"}},
		"not streamed":               {`{"stream":false,"model":"m"}`, call{model: "m"}},
		"an escaped name":            {`{"\u006dodel":"m"}`, call{model: "m"}},
		"an escaped value":           {`{"model":"\u006f\/\"\n"}`, call{model: "o/\"\n"}},
		"a surrogate pair":           {`{"model":"\ud83d\ude00"}`, call{model: "😀"}},
		"half a surrogate pair":      {`{"model":"\ud83d"}`, call{model: "\ufffd"}},
		"invalid UTF-8":              {"{\"x\":\"\xff\",\"model\":\"a\xffb\"}", call{model: "a\ufffdb"}},
		"duplicates further in":      {`{"model":"m","a":{"model":1,"model":2}}`, call{model: "m"}},
		"duplicates of other fields": {`{"model":"m","user":"a","user":"b"}`, call{model: "m"}},
		"another's case is not ours": {`{"Stream":true,"model":"m"}`, call{model: "m"}},
		"a name that is longer":      {`{"model_":"x","model":"m"}`, call{model: "m"}},
		"256 bytes":                  {`{"model":"` + strings.Repeat("x", 256) + `"}`, call{model: strings.Repeat("x", 256)}},
		"256 escaped bytes":          {`{"model":"` + strings.Repeat(`\u0078`, 256) + `"}`, call{model: strings.Repeat("x", 256)}},
		"9 000 deep":                 {`{"model":"m","a":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, call{model: "m"}},
		"numbers of any length":      {`{"model":"m","seed":` + strings.Repeat("9", 10_000) + `e9999}`, call{model: "m"}},
	} {
		t.Run(about, func(t *testing.T) {
			if got, err := scanOf("/v1/chat/completions", c.body); err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

func TestScanRefuses(t *testing.T) {
	for about, c := range map[string]struct{ body, param string }{
		"nothing":                      {"", ""},
		"white space":                  {" \n", ""},
		"no JSON":                      {"model=m", ""},
		"a list":                       {`[{"model":"m"}]`, ""},
		"a string":                     {`"model"`, ""},
		"null":                         {"null", ""},
		"byte order mark":              {"\ufeff" + `{"model":"m"}`, ""},
		"UTF-16":                       {"{\x00\"\x00m\x00", ""},
		"gzip without a header":        {"\x1f\x8b\x08\x00", ""},
		"cut in a string":              {`{"model":"m`, ""},
		"cut after the string":         {`{"model":"m"`, ""},
		"cut after a name":             {`{"model"`, ""},
		"cut after a comma":            {`{"model":"m",`, ""},
		"trailing comma":               {`{"model":"m",}`, ""},
		"a name that is no string":     {`{model:"m"}`, ""},
		"a number as name":             {`{1:"m"}`, ""},
		"single quotes":                {`{'model':'m'}`, ""},
		"a comment":                    {`{"model":"m"/* */}`, ""},
		"NaN":                          {`{"model":"m","temperature":NaN}`, ""},
		"a control byte":               {"{\"model\":\"a\nb\"}", ""},
		"two objects":                  {`{"model":"m"}{"model":"n"}`, ""},
		"a NUL at the end":             {"{\"model\":\"m\"}\x00", ""},
		"damage after the model":       {`{"model":"m","a":[1,}`, ""},
		"no model":                     {`{"messages":[]}`, "model"},
		"an empty model":               {`{"model":""}`, "model"},
		"null for a model":             {`{"model":null}`, "model"},
		"a number for a model":         {`{"model":5}`, "model"},
		"a boolean for a model":        {`{"model":true}`, "model"},
		"an object for a model":        {`{"model":{"name":"m"}}`, "model"},
		"a list for a model":           {`{"model":["m"]}`, "model"},
		"a model in another case":      {`{"Model":"m"}`, "model"},
		"257 bytes":                    {`{"model":"` + strings.Repeat("x", 257) + `"}`, "model"},
		"a megabyte":                   {`{"model":"` + strings.Repeat("x", 1<<20) + `"}`, "model"},
		"model twice":                  {`{"model":"a","model":"b"}`, "model"},
		"model twice the same":         {`{"model":"a","model":"a"}`, "model"},
		"model twice, once null":       {`{"model":null,"model":"b"}`, "model"},
		"model twice, far apart":       {`{"model":"a","x":"` + strings.Repeat("x", 1<<20) + `","model":"b"}`, "model"},
		"model twice by case":          {`{"model":"a","MODEL":"b"}`, "model"},
		"model twice by escape":        {`{"model":"a","\u006D\u006f\u0064\u0065\u006c":"b"}`, "model"},
		"model twice by both":          {`{"\u004dODEL":"a","mode\u006c":"b"}`, "model"},
		"stream twice by the long s":   {`{"model":"m","stream":false,"ſtream":true}`, "stream"},
		"stream twice, long s escaped": {`{"model":"m","stream":false,"\u017ftream":true}`, "stream"},
		"tier twice":                   {`{"model":"m","service_tier":"flex","service_tier":"scale"}`, "service_tier"},
		"a string for stream":          {`{"model":"m","stream":"true"}`, "stream"},
		"a number for stream":          {`{"model":"m","stream":1}`, "stream"},
		"an object for stream":         {`{"model":"m","stream":{}}`, "stream"},
		"a number for a tier":          {`{"model":"m","service_tier":1}`, "service_tier"},
		"an object for a tier":         {`{"model":"m","service_tier":{"a":1}}`, "service_tier"},
		"a tier of a megabyte":         {`{"model":"m","service_tier":"` + strings.Repeat("x", 1<<20) + `"}`, "service_tier"},
		"100 000 lists deep":           {`{"model":"m","a":` + strings.Repeat("[", 100_000), ""},
		"100 000 lists, all closed":    {`{"model":"m","a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, ""},
		"100 000 objects deep":         {`{"model":"m","a":` + strings.Repeat(`{"a":`, 100_000), ""},
		"a model 100 000 lists deep":   {`{"model":` + strings.Repeat("[", 100_000), "model"},
	} {
		t.Run(about, func(t *testing.T) {
			_, err := scanOf("/v1/chat/completions", c.body)
			wantRefusal(t, err, 400, c.param)
		})
	}
}

func TestScanEncodings(t *testing.T) {
	const body = `{"model":"m"}`
	for enc, status := range map[string]int{"": 200, "identity": 200, "Identity": 200, "gzip": 415, "br": 415, "gzip, gzip": 415, "identity, gzip": 415} {
		_, err := scanOf("/v1/embeddings", body, "Content-Encoding", enc)
		if status == 200 {
			if err != nil {
				t.Errorf("%q: %v", enc, err)
			}
			continue
		}
		wantRefusal(t, err, status, "")
	}
	r := httptest.NewRequest("POST", "/v1/embeddings", nil)
	r.Header["Content-Encoding"] = []string{"identity", "gzip"}
	_, err := scan(r, []byte(body))
	wantRefusal(t, err, 415, "")

	r = httptest.NewRequest("POST", "/v1/embeddings", nil)
	r.Header["Content-Type"] = []string{"application/json", "multipart/form-data; boundary=x"}
	_, err = scan(r, []byte(body))
	wantRefusal(t, err, 400, "")
	for _, ct := range []string{"", "text/plain", "application/json; charset=utf-8", "no media type at all;;"} {
		if c, err := scanOf("/v1/embeddings", body, "Content-Type", ct); err != nil || c.model != "m" {
			t.Errorf("content type %q: %+v, %v", ct, c, err)
		}
	}
}

func TestScanModelInPath(t *testing.T) {
	for path, model := range map[string]string{
		"/v2/models/m/infer":                    "m",
		"/v2/models/m/versions/3/infer":         "m",
		"/v2/models/org%2Fm%3Atag/infer":        "org/m:tag",
		"/v2/models/a.b/infer?x=1":              "a.b",
		"/v2/models/%2A/infer":                  "*",
		"/v2/models/%3E/infer":                  ">",
		"/v2/models/%C3%BC%20%C3%B1/infer":      "ü ñ",
		"/v2/models/100%25/infer":               "100%",
		"/v2/models/org/m/infer":                "org",
		"/v2/models/m/generate_stream":          "m",
		"/v2/models/m":                          "m",
		"/v2/models/..%2f..%2fv1/infer":         "../../v1",
		"/v2/models/%ff/infer":                  "\xff",
		"/v2/models/%252F/infer":                "%2F",
		"/v2/models/a%0d%0aNats-TTL%3A%201/inf": "a\r\nNats-TTL: 1",
	} {
		// The body is tensors: it is not looked at.
		if c, err := scanOf(path, "\x00\x01", "Content-Type", "application/octet-stream"); err != nil || c != (call{model: model}) {
			t.Errorf("%s: got %+v, %v, want model %q", path, c, err, model)
		}
	}
	for _, path := range []string{"/v2/models//infer", "/v2/models/", "/v2/models/" + strings.Repeat("x", 257) + "/infer"} {
		_, err := scanOf(path, `{"model":"m"}`)
		wantRefusal(t, err, 400, "model")
	}
}

// form writes a form of fields; a value with "file:" before it is a file.
func form(t testing.TB, fields ...string) (body, contentType string) {
	t.Helper()
	var b strings.Builder
	w := multipart.NewWriter(&b)
	for i := 0; i+1 < len(fields); i += 2 {
		if content, ok := strings.CutPrefix(fields[i+1], "file:"); ok {
			p, err := w.CreateFormFile(fields[i], "a.wav")
			if err != nil {
				t.Fatal(err)
			}
			p.Write([]byte(content))
		} else if err := w.WriteField(fields[i], fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return b.String(), w.FormDataContentType()
}

func TestScanForm(t *testing.T) {
	audio := "file:" + strings.Repeat("\x00\r\n--", 10_000)
	for about, c := range map[string]struct {
		fields []string
		want   call
		status int
		param  string
	}{
		"model first":         {[]string{"model", "m", "file", audio}, call{model: "m"}, 200, ""},
		"model after a file":  {[]string{"file", audio, "model", "m"}, call{model: "m"}, 200, ""},
		"all fields":          {[]string{"stream", "true", "service_tier", "flex", "model", "m"}, call{"m", true, "flex"}, 200, ""},
		"not streamed":        {[]string{"stream", "false", "model", "m"}, call{model: "m"}, 200, ""},
		"others twice":        {[]string{"a[]", "1", "a[]", "2", "model", "m"}, call{model: "m"}, 200, ""},
		"another's case":      {[]string{"Model", "x", "model", "m"}, call{model: "m"}, 200, ""},
		"no model":            {[]string{"file", audio}, call{}, 400, "model"},
		"an empty model":      {[]string{"model", ""}, call{}, 400, "model"},
		"model twice":         {[]string{"model", "a", "file", audio, "model", "b"}, call{}, 400, "model"},
		"a file for a model":  {[]string{"model", "file:m"}, call{}, 400, "model"},
		"a file beside it":    {[]string{"model", "m", "model", "file:n"}, call{}, 400, "model"},
		"a model of 300 byte": {[]string{"model", strings.Repeat("x", 300)}, call{}, 400, "model"},
		"a model of 1 MiB":    {[]string{"model", strings.Repeat("x", 1<<20)}, call{}, 400, "model"},
		"a part without name": {[]string{"", "x", "model", "m"}, call{}, 400, ""},
	} {
		t.Run(about, func(t *testing.T) {
			body, ct := form(t, c.fields...)
			got, err := scanOf("/v1/audio/transcriptions", body, "Content-Type", ct)
			if c.status != 200 {
				wantRefusal(t, err, c.status, c.param)
			} else if err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
	body, ct := form(t, "model", "m", "file", audio)
	for about, c := range map[string]struct{ body, contentType string }{
		"no boundary":       {body, "multipart/form-data"},
		"an empty boundary": {body, `multipart/form-data; boundary=""`},
		"another boundary":  {body, "multipart/form-data; boundary=other"},
		"cut at the end":    {body[:len(body)-10], ct},
		"cut in a file":     {body[:len(body)/2], ct},
		"cut in a header":   {body[:80], ct},
		"empty":             {"", ct},
		"JSON":              {`{"model":"m"}`, ct},
		"a header of 1 MiB": {strings.Replace(body, "Content-Disposition", "X: "+strings.Repeat("x", 1<<20)+"\r\nContent-Disposition", 1)[:1<<20], ct},
		// Two readers, two names: neither is believed.
		"a disposition that contradicts itself": {strings.Replace(body, `name="model"`, `name="model"; name*=utf-8''other`, 1), ct},
	} {
		t.Run(about, func(t *testing.T) {
			_, err := scanOf("/v1/audio/transcriptions", c.body, "Content-Type", c.contentType)
			wantRefusal(t, err, 400, "")
		})
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// The scan neither copies nor keeps a body, whatever is in it.
func TestScanDoesNotCopy(t *testing.T) {
	const size = wholeBody / 4
	long := strings.Repeat("x", size)
	most := strings.Repeat("x", wholeBody)
	multi, ct := form(t, "file", "file:"+most, "model", "m")
	for about, c := range map[string]struct{ body, contentType string }{
		"a long string":      {`{"a":"` + most + `","model":"m"}`, "application/json"},
		"escapes":            {`{"a":"` + strings.Repeat(`\n`, size/2) + `","model":"m"}`, "application/json"},
		"a long name":        {`{"` + long + `":1,"model":"m"}`, "application/json"},
		"a long model":       {`{"model":"` + long + `"}`, "application/json"},
		"a long tier":        {`{"model":"m","service_tier":"` + long + `"}`, "application/json"},
		"a number":           {`{"a":` + strings.Repeat("1", size) + `,"model":"m"}`, "application/json"},
		"many names":         {`{` + strings.Repeat(`"a":0,`, size/6) + `"model":"m"}`, "application/json"},
		"many values":        {`{"a":[` + strings.Repeat(`0,`, size/2) + `0],"model":"m"}`, "application/json"},
		"depth":              {`{"a":` + strings.Repeat("[", size), "application/json"},
		"a file":             {multi, ct},
		"a form without end": {multi[:len(multi)-60], ct},
	} {
		t.Run(about, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/v1/chat/completions", nil)
			r.Header.Set("Content-Type", c.contentType)
			body := []byte(c.body)
			if n := allocated(func() { scan(r, body) }); n > 1<<20 {
				t.Errorf("scanning %d bytes allocates %d", len(body), n)
			}
		})
	}
}

// FuzzScanJSON holds scan against encoding/json: what one lets pass, the other
// must read the same way.
func FuzzScanJSON(f *testing.F) {
	for _, s := range []string{
		`{"model":"m"}`, `{"model":"a","model":"b"}`, `{"model":"a","MODEL":"b"}`, `{"\u006dodel":"a","model":"b"}`,
		`{"stream":true,"model":"m","service_tier":"flex"}`, `{"model":null}`, `{"model":"\ud800"}`, "{\"model\":\"\xff\"}",
		`{"a":{"model":"x"},"model":"m"}`, `{"ſtream":true,"model":"m"}`, ` {"model":"m"} x`, `[]`, ``, "\ufeff{}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		was := bytes.Clone(body)
		c, err := scanJSON(body)
		if !bytes.Equal(body, was) {
			t.Fatalf("scan changed %q to %q", was, body)
		}
		var v struct {
			Model  json.RawMessage `json:"model"`
			Tier   json.RawMessage `json:"service_tier"`
			Stream json.RawMessage `json:"stream"`
		}
		jerr := json.Unmarshal(body, &v)
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Status != 400 || e.Code == "" || e.Message == "" {
				t.Errorf("%q: got %#v, want a 400", body, err)
			}
			return
		}
		if jerr != nil {
			t.Fatalf("%q passes as %+v; encoding/json: %v", body, c, jerr)
		}
		var all map[string]json.RawMessage
		json.Unmarshal(body, &all)
		str := func(name string, raw json.RawMessage) (s string) {
			if _, ok := all[name]; ok && len(raw) > 0 && raw[0] == '"' {
				json.Unmarshal(raw, &s)
			}
			return s
		}
		stream := all["stream"] != nil && string(v.Stream) == "true"
		if want := (call{model: str("model", v.Model), tier: str("service_tier", v.Tier), stream: stream}); c != want {
			t.Errorf("%q: scan reads %+v, encoding/json %+v", body, c, want)
		}
	})
}

// FuzzScanForm holds the scan of a form against net/http's own reading.
func FuzzScanForm(f *testing.F) {
	for _, fields := range [][]string{{"model", "m"}, {"model", "a", "model", "b"}, {"file", "file:x", "model", "m", "stream", "true"}} {
		body, ct := form(f, fields...)
		_, boundary, _ := strings.Cut(ct, "boundary=")
		f.Add([]byte(strings.ReplaceAll(body, boundary, "B")))
	}
	f.Add([]byte("--B\r\nContent-Disposition: form-data; name=model; name*=utf-8''x\r\n\r\nm\r\n--B--"))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := scanForm(body, "B")
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Status != 400 {
				t.Errorf("%q: got %#v, want a 400", body, err)
			}
			return
		}
		parsed, err := multipart.NewReader(bytes.NewReader(body), "B").ReadForm(1 << 20)
		if err != nil {
			return // stricter than we are
		}
		defer parsed.RemoveAll()
		if vs := parsed.Value["model"]; len(vs) > 1 || len(vs) == 1 && len(vs[0]) < maxField && vs[0] != c.model {
			// NextRawPart does not decode quoted-printable, and nor do engines.
			if !bytes.Contains(bytes.ToLower(body), []byte("quoted-printable")) {
				t.Errorf("%q: scan reads model %q, net/http %q", body, c.model, vs)
			}
		}
	})
}

func FuzzScanPath(f *testing.F) {
	f.Add("m")
	f.Add("org/m:tag")
	f.Add("../\x00%\xff")
	f.Fuzz(func(t *testing.T, model string) {
		r := httptest.NewRequest("POST", "/", nil)
		r.URL.Path = "/v2/models/" + model + "/infer"
		if !strings.Contains(model, "/") {
			if got, ok := modelInPath(r.URL); !ok || got != model {
				t.Errorf("model %q reads %q, %t", model, got, ok)
			}
		}
		r.URL.RawPath = "/v2/models/" + model + "/infer"
		modelInPath(r.URL) // whatever a client sends: no panic
	})
}

func BenchmarkScan(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10, 1 << 20} {
		var body strings.Builder
		body.WriteString(`{"stream":true,"temperature":0.7,"messages":[`)
		for body.Len() < size-200 {
			fmt.Fprintf(&body, `{"role":"user","content":"Say \"hello\" to the world,\nplease. %s"},`, strings.Repeat("lorem ipsum ", 20))
		}
		body.WriteString(`{"role":"user","content":"x"}],"model":"llama"}`)
		raw := []byte(body.String())
		r := httptest.NewRequest("POST", "/v1/chat/completions", nil)
		r.Header = http.Header{"Content-Type": {"application/json"}}
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := scan(r, raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
