package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/pulley-lb/pulley/subjects"
)

// scanOf scans a body as if it had been sent to path; header is name, value, ….
func scanOf(path, body string, header ...string) (Call, error) {
	r := httptest.NewRequest("POST", path, nil)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return Scan(r, []byte(body))
}

// said is the fields of a Call without their positions.
type said struct {
	model  string
	stream bool
	tier   string
}

func (c Call) said() said { return said{c.Model, c.Stream, c.Tier} }

// wantPlaces checks the positions of model and tier in a body.
func wantPlaces(t *testing.T, c Call, body string) {
	t.Helper()
	unquote := func(from, to int) string {
		s, err := jsontext.AppendUnquote(nil, body[from:to])
		if err != nil && !strings.Contains(err.Error(), "surrogate") && !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("%q at %d: %v", body[from:to], from, err)
		}
		return string(s)
	}
	if c.ModelAt.In != subjects.ModelInJSON {
		t.Fatalf("%.100q: model in %q", body, c.ModelAt.In)
	}
	if got := unquote(c.ModelAt.From, c.ModelAt.To); got != c.Model {
		t.Errorf("%.100q: model %q is at %q", body, c.Model, got)
	}
	if at := c.tierAt; at != [2]int{} {
		if got := unquote(at[0], at[1]); got != c.Tier {
			t.Errorf("%.100q: tier %q is at %q", body, c.Tier, got)
		}
	} else if c.Tier != "" {
		t.Errorf("%.100q: the position of tier %q is unknown", body, c.Tier)
	}
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
	for _, a := range []API{Chat, Embeddings, OpenAI, Responses, Messages, Other} {
		var b struct{ Error map[string]any }
		if err := json.Unmarshal(e.Body(a, "id"), &b); err != nil {
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
		want said
	}{
		"the least":                  {`{"model":"m"}`, said{model: "m"}},
		"white space":                {" \t\r\n{ \"model\" : \"m\" } \n", said{model: "m"}},
		"model last":                 {`{"messages":[{"model":"x"}],"a":{"model":"y"},"model":"m"}`, said{model: "m"}},
		"all fields":                 {`{"service_tier":"flex","stream":true,"model":"m"}`, said{model: "m", stream: true, tier: "flex"}},
		"nulls are absent":           {`{"stream":null,"service_tier":null,"model":"m"}`, said{model: "m"}},
		"not streamed":               {`{"stream":false,"model":"m"}`, said{model: "m"}},
		"an escaped name":            {`{"\u006dodel":"m"}`, said{model: "m"}},
		"an escaped value":           {`{"model":"\u006f\/\"\n"}`, said{model: "o/\"\n"}},
		"a surrogate pair":           {`{"model":"\ud83d\ude00"}`, said{model: "😀"}},
		"half a surrogate pair":      {`{"model":"\ud83d"}`, said{model: "\ufffd"}},
		"invalid UTF-8":              {"{\"x\":\"\xff\",\"model\":\"a\xffb\"}", said{model: "a\ufffdb"}},
		"duplicates further in":      {`{"model":"m","a":{"model":1,"model":2}}`, said{model: "m"}},
		"duplicates of other fields": {`{"model":"m","user":"a","user":"b"}`, said{model: "m"}},
		"another's case is not ours": {`{"Stream":true,"model":"m"}`, said{model: "m"}},
		"a name that is longer":      {`{"model_":"x","model":"m"}`, said{model: "m"}},
		"256 bytes":                  {`{"model":"` + strings.Repeat("x", 256) + `"}`, said{model: strings.Repeat("x", 256)}},
		"256 escaped bytes":          {`{"model":"` + strings.Repeat(`\u0078`, 256) + `"}`, said{model: strings.Repeat("x", 256)}},
		"9 000 deep":                 {`{"model":"m","a":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, said{model: "m"}},
		"a byte order mark":          {"\ufeff" + `{"stream":true,"model":"m"}`, said{model: "m", stream: true}},
		"a mark and white space":     {"\ufeff\r\n" + `{"model":"m"}`, said{model: "m"}},
		"a word for stream":          {`{"stream":"true","model":"m"}`, said{model: "m", stream: true}},
		"a word in another case":     {`{"stream":"True","model":"m"}`, said{model: "m", stream: true}},
		"a word that is false":       {`{"stream":"off","model":"m"}`, said{model: "m"}},
		"a number for stream":        {`{"stream":1,"model":"m"}`, said{model: "m", stream: true}},
		"0 for stream":               {`{"stream":0.0,"model":"m"}`, said{model: "m"}},
		"NaN":                        {`{"temperature":NaN,"model":"m"}`, said{model: "m"}},
		"infinities":                 {`{"a":[Infinity,-Infinity, NaN ],"model":"m"}`, said{model: "m"}},
		"numbers of any length":      {`{"model":"m","seed":` + strings.Repeat("9", 10_000) + `e9999}`, said{model: "m"}},
	} {
		t.Run(about, func(t *testing.T) {
			got, err := scanOf("/v1/chat/completions", c.body)
			if err != nil || got.said() != c.want {
				t.Fatalf("got %+v, %v, want %+v", got, err, c.want)
			}
			wantPlaces(t, got, c.body)
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
		"two byte order marks":         {"\ufeff\ufeff" + `{"model":"m"}`, ""},
		"a byte order mark further in": {"{\ufeff" + `"model":"m"}`, ""},
		"UTF-16":                       {"{\x00\"\x00m\x00", ""},
		"gzip without a header":        {"\x1f\x8b\x08\x00", ""},
		"cut in a string":              {`{"model":"m`, ""},
		"cut after the string":         {`{"model":"m"`, ""},
		"cut after a name":             {`{"model"`, ""},
		"cut after a comma":            {`{"model":"m",`, ""},
		"trailing comma":               {`{"model":"m",}`, ""},
		"a name that is not a string":  {`{model:"m"}`, ""},
		"a number as name":             {`{1:"m"}`, ""},
		"single quotes":                {`{'model':'m'}`, ""},
		"a comment":                    {`{"model":"m"/* */}`, ""},
		"NaN cut":                      {`{"model":"m","temperature":Na}`, ""},
		"NaN and more":                 {`{"model":"m","temperature":NaN1}`, ""},
		"nan":                          {`{"model":"m","temperature":nan}`, ""},
		"+Infinity":                    {`{"model":"m","temperature":+Infinity}`, ""},
		"NaN for a name":               {`{NaN:1,"model":"m"}`, ""},
		"NaN for a model":              {`{"model":NaN}`, "model"},
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
		"messages twice":               {`{"model":"m","messages":[],"messages":[]}`, "messages"},
		"messages twice by case":       {`{"model":"m","messages":[],"Messages":[]}`, "messages"},
		"input twice":                  {`{"model":"m","input":"a","input":"b"}`, "input"},
		"a cache key twice":            {`{"model":"m","prompt_cache_key":"a","prompt_cache_key":"b"}`, "prompt_cache_key"},
		"damage in the messages":       {`{"model":"m","messages":[{"a":1},{"a":]}`, ""},
		"messages cut":                 {`{"model":"m","messages":[{"a":1},`, ""},
		"messages 100 000 lists deep":  {`{"model":"m","messages":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, ""},
		"a word for stream":            {`{"model":"m","stream":"maybe"}`, "stream"},
		"an empty word for stream":     {`{"model":"m","stream":""}`, "stream"},
		"a word with space for stream": {`{"model":"m","stream":" true"}`, "stream"},
		"a number for stream":          {`{"model":"m","stream":2}`, "stream"},
		"NaN for stream":               {`{"model":"m","stream":NaN}`, "stream"},
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
	_, err := Scan(r, []byte(body))
	wantRefusal(t, err, 415, "")

	r = httptest.NewRequest("POST", "/v1/embeddings", nil)
	r.Header["Content-Type"] = []string{"application/json", "multipart/form-data; boundary=x"}
	_, err = Scan(r, []byte(body))
	wantRefusal(t, err, 400, "")
	for _, ct := range []string{"", "text/plain", "application/json; charset=utf-8", "no media type at all;;"} {
		if c, err := scanOf("/v1/embeddings", body, "Content-Type", ct); err != nil || c.Model != "m" {
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
		// The body is tensors: it is not read.
		if c, err := scanOf(path, "\x00\x01", "Content-Type", "application/octet-stream"); err != nil || c.said() != (said{model: model}) {
			t.Errorf("%s: got %+v, %v, want model %q", path, c, err, model)
		}
	}
	for _, path := range []string{"/v2/models//infer", "/v2/models/", "/v2/models/" + strings.Repeat("x", 257) + "/infer"} {
		_, err := scanOf(path, `{"model":"m"}`)
		wantRefusal(t, err, 400, "model")
	}
}

// form writes a form of fields; a value that starts with "file:" is a file.
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
		want   said
		status int
		param  string
	}{
		"model first":                  {[]string{"model", "m", "file", audio}, said{model: "m"}, 200, ""},
		"model after a file":           {[]string{"file", audio, "model", "m"}, said{model: "m"}, 200, ""},
		"all fields":                   {[]string{"stream", "true", "service_tier", "flex", "model", "m"}, said{"m", true, "flex"}, 200, ""},
		"not streamed":                 {[]string{"stream", "false", "model", "m"}, said{model: "m"}, 200, ""},
		"others twice":                 {[]string{"a[]", "1", "a[]", "2", "model", "m"}, said{model: "m"}, 200, ""},
		"another's case":               {[]string{"Model", "x", "model", "m"}, said{model: "m"}, 200, ""},
		"no model":                     {[]string{"file", audio}, said{}, 400, "model"},
		"an empty model":               {[]string{"model", ""}, said{}, 400, "model"},
		"model twice":                  {[]string{"model", "a", "file", audio, "model", "b"}, said{}, 400, "model"},
		"a file for a model":           {[]string{"model", "file:m"}, said{}, 400, "model"},
		"with a file of the same name": {[]string{"model", "m", "model", "file:n"}, said{}, 400, "model"},
		"a model of 300 byte":          {[]string{"model", strings.Repeat("x", 300)}, said{}, 400, "model"},
		"a model of 1 MiB":             {[]string{"model", strings.Repeat("x", 1<<20)}, said{}, 400, "model"},
		"a part without name":          {[]string{"", "x", "model", "m"}, said{}, 400, ""},
	} {
		t.Run(about, func(t *testing.T) {
			body, ct := form(t, c.fields...)
			got, err := scanOf("/v1/audio/transcriptions", body, "Content-Type", ct)
			if c.status != 200 {
				wantRefusal(t, err, c.status, c.param)
			} else if err != nil || got.said() != c.want {
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
		// Two parsers, two names: neither is accepted.
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
			if n := allocated(func() { Scan(r, body) }); n > 1<<20 {
				t.Errorf("scanning %d bytes allocates %d", len(body), n)
			}
		})
	}
}

// FuzzScanJSON compares the scan with encoding/json: what the scan accepts, encoding/json must read
// the same way.
func FuzzScanJSON(f *testing.F) {
	for _, s := range []string{
		`{"model":"m"}`, `{"model":"a","model":"b"}`, `{"model":"a","MODEL":"b"}`, `{"\u006dodel":"a","model":"b"}`,
		`{"stream":true,"model":"m","service_tier":"flex"}`, `{"model":null}`, `{"model":"\ud800"}`, "{\"model\":\"\xff\"}",
		`{"a":{"model":"x"},"model":"m"}`, `{"ſtream":true,"model":"m"}`, ` {"model":"m"} x`, `[]`, ``, "\ufeff{}",
	} {
		f.Add([]byte(s))
	}
	f.Add([]byte(`{"model":"m","temperature":NaN,"stream":"on"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		was := bytes.Clone(body)
		c, err := scanJSON(body, "messages")
		if !bytes.Equal(body, was) {
			t.Fatalf("scan changed %q to %q", was, body)
		}
		var v struct {
			Model  json.RawMessage `json:"model"`
			Tier   json.RawMessage `json:"service_tier"`
			Stream json.RawMessage `json:"stream"`
		}
		body = strictJSON(body)
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
		var stream bool
		if v := all["stream"]; v != nil {
			switch strings.ToLower(strings.Trim(string(v), `"`)) {
			case "true", "1", "1.0", "t", "yes", "y", "on":
				stream = true
			default:
				stream = c.Stream && bytes.ContainsRune(v, '\\') // escapes
			}
		}
		if want := (said{model: str("model", v.Model), tier: str("service_tier", v.Tier), stream: stream}); c.said() != want {
			t.Errorf("%q: scan reads %+v, encoding/json %+v", body, c, want)
		}
		if c.Model != "" {
			wantPlaces(t, c, string(was))
		}
	})
}

// strictJSON is a body as encoding/json takes it: without a byte order mark, and with zeroes for numbers that are none.
func strictJSON(body []byte) []byte {
	body = bytes.Clone(bytes.TrimPrefix(body, byteOrderMark))
	for i := 0; i < len(body); i++ {
		if body[i] == '"' {
			if end := skipString(body, i); end > 0 {
				i = end - 1
			}
			continue
		}
		for _, word := range []string{"-Infinity", "Infinity", "NaN"} {
			if bytes.HasPrefix(body[i:], []byte(word)) {
				copy(body[i:], "0"+strings.Repeat(" ", len(word)-1))
				break
			}
		}
	}
	return body
}

// FuzzScanForm compares the scan of a form with net/http's own reading.
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
			return // stricter than Scan
		}
		defer parsed.RemoveAll()
		if vs := parsed.Value["model"]; len(vs) > 1 || len(vs) == 1 && len(vs[0]) < MaxField && vs[0] != c.Model {
			// NextRawPart does not decode quoted-printable, and neither do engines.
			if !bytes.Contains(bytes.ToLower(body), []byte("quoted-printable")) {
				t.Errorf("%q: scan reads model %q, net/http %q", body, c.Model, vs)
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
			if got, _, ok := modelInPath(r.URL); !ok || got != model {
				t.Errorf("model %q reads %q, %t", model, got, ok)
			}
		}
		r.URL.RawPath = "/v2/models/" + model + "/infer"
		modelInPath(r.URL) // must not panic, whatever a client sends
	})
}

func TestScanExtras(t *testing.T) {
	for about, c := range map[string]struct {
		body      string
		cacheKey  string
		maxTokens int
	}{
		"none":                        {`{"model":"m"}`, "", 0},
		"both":                        {`{"model":"m","prompt_cache_key":"k\u00e9","max_tokens":7}`, "ké", 7},
		"the newest name counts":      {`{"max_tokens":7,"max_completion_tokens":8,"model":"m"}`, "", 8},
		"Responses' name":             {`{"max_output_tokens":9,"model":"m"}`, "", 9},
		"the last of one name counts": {`{"max_tokens":7,"model":"m","max_tokens":8}`, "", 8},
		"nulls":                       {`{"model":"m","prompt_cache_key":null,"max_tokens":null}`, "", 0},
		"odd ones are none":           {`{"model":"m","prompt_cache_key":["k"],"max_tokens":"7"}`, "", 0},
		"a negative number":           {`{"model":"m","max_tokens":-7}`, "", 0},
		"a fraction":                  {`{"model":"m","max_tokens":7.5}`, "", 0},
		"a huge number":               {`{"model":"m","max_tokens":7000000000000000000000}`, "", 0},
		"an object for a number":      {`{"model":"m","max_tokens":{"a":[1]}}`, "", 0},
		"a key of a megabyte":         {`{"model":"m","prompt_cache_key":"` + strings.Repeat("k", 1<<20) + `"}`, "", 0},
		"another's case is not ours":  {`{"model":"m","Prompt_Cache_Key":"k","Max_Tokens":7}`, "", 0},
		"escaped":                     {`{"model":"m","prompt_cache_ke\u0079":"k","max_token\u0073":7}`, "k", 7},
	} {
		t.Run(about, func(t *testing.T) {
			got, err := scanOf("/v1/chat/completions", c.body)
			if err != nil || got.CacheKey != c.cacheKey || got.MaxTokens != c.maxTokens {
				t.Errorf("got key %q, %d tokens, %v, want %q, %d", got.CacheKey, got.MaxTokens, err, c.cacheKey, c.maxTokens)
			}
		})
	}
}

func TestEngineTier(t *testing.T) {
	for about, c := range map[string]struct{ body, want string }{
		"none":                 {`{"model":"m"}`, `{"model":"m"}`},
		"null":                 {`{"model":"m","service_tier":null}`, `{"model":"m","service_tier":null}`},
		"OpenAI's":             {`{"service_tier":"flex","model":"m"}`, `{"service_tier":"flex","model":"m"}`},
		"OpenAI's, escaped":    {`{"service_tier":"\u0061uto","model":"m"}`, `{"service_tier":"\u0061uto","model":"m"}`},
		"before the model":     {`{"service_tier": "batch" ,"model":"m"}`, `{"service_tier": "auto" ,"model":"m"}`},
		"behind the model":     {` {"model":"m","service_tier":"standard"} `, ` {"model":"m","service_tier":"auto"} `},
		"shorter than auto":    {`{"service_tier":"x","model":"m"}`, `{"service_tier":"auto","model":"m"}`},
		"as long":              {`{"service_tier":"slow","model":"m"}`, `{"service_tier":"auto","model":"m"}`},
		"a tier named nowhere": {`{"service_tier":"batch","model":"m","a":"batch"}`, `{"service_tier":"auto","model":"m","a":"batch"}`},
	} {
		t.Run(about, func(t *testing.T) {
			call, err := scanOf("/v1/chat/completions", c.body)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(call.WithEngineTier([]byte(c.body))); got != c.want {
				t.Fatalf("got %s, want %s", got, c.want)
			}
			now, err := scanOf("/v1/chat/completions", c.want)
			if err != nil {
				t.Fatal(err)
			}
			if call.ModelAt != now.ModelAt || call.tierAt != now.tierAt {
				t.Errorf("places %v and %v, want %v and %v", call.ModelAt, call.tierAt, now.ModelAt, now.tierAt)
			}
		})
	}
	body, ct := form(t, "service_tier", "batch", "model", "m")
	call, err := scanOf("/v1/audio/transcriptions", body, "Content-Type", ct)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(call.WithEngineTier([]byte(body))); got != body {
		t.Errorf("a form becomes %q", got)
	}
}

// TestModelAtForm replaces the name at the position that the scan reports.
func TestModelAtForm(t *testing.T) {
	audio := "file:" + strings.Repeat("\x00\r\n--", 10_000)
	for about, fields := range map[string][]string{
		"alone":                     {"model", "m"},
		"first":                     {"model", "whisper", "file", audio},
		"last":                      {"file", audio, "model", "whisper"},
		"between parts of its name": {"a", "m", "model", "m", "response_format", "m"},
		"behind its own name":       {"a", "model", "b", "m", "model", "m"},
		"a file of its bytes":       {"file", "file:m", "model", "m", "file2", "file:m"},
	} {
		t.Run(about, func(t *testing.T) {
			body, ct := form(t, fields...)
			c, err := scanOf("/v1/audio/transcriptions", body, "Content-Type", ct)
			if err != nil || c.ModelAt.In != subjects.ModelInForm {
				t.Fatalf("got %+v, %v", c, err)
			}
			_, boundary, _ := strings.Cut(ct, "boundary=")
			replaced := body[:c.ModelAt.From] + "another" + body[c.ModelAt.To:]
			for i := 0; i < len(fields); i += 2 {
				if fields[i] == "model" {
					fields[i+1] = "another"
				}
			}
			want, wantCT := form(t, fields...)
			_, wantBoundary, _ := strings.Cut(wantCT, "boundary=")
			if want = strings.ReplaceAll(want, wantBoundary, boundary); replaced != want {
				t.Errorf("got %.300q, want %.300q", replaced, want)
			}
		})
	}
	for about, body := range map[string]string{
		"bare line feeds":   "--B\nContent-Disposition: form-data; name=\"model\"\n\nm\n--B--\n",
		"bare in its value": "--B\nContent-Disposition: form-data; name=\"model\"\n\nm\r\n--B--\n",
	} {
		if c, err := scanForm([]byte(body), "B"); err != nil || c.ModelAt != (subjects.ModelAt{}) {
			t.Errorf("%s: got %+v, %v, want no place", about, c, err)
		}
	}
	preamble := "preamble\r\n--B\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--B--\r\nm\r\n--B"
	if c, err := scanForm([]byte(preamble), "B"); err != nil || c.ModelAt.From != strings.Index(preamble, "m\r\n--B--") {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestModelAtPath(t *testing.T) {
	for uri, want := range map[string]string{
		"/v2/models/m/infer":                "m",
		"/v2/models/org%2Fm%3Atag/infer?a=": "org%2Fm%3Atag",
		"/v2/models/%C3%BC/infer":           "%C3%BC",
		"/v2/models/ü/infer":                "%C3%BC",
		"/v2/models/a%20b":                  "a%20b",
		"/v2/models/m/infer?\xff=\xfe":      "m",
	} {
		u, err := url.ParseRequestURI(uri)
		if err != nil {
			t.Fatal(err)
		}
		_, at, ok := modelInPath(u)
		if !ok || at.In != subjects.ModelInPath {
			t.Fatalf("%s: got %+v, %t", uri, at, ok)
		}
		if got := RequestURI(u)[at.From:at.To]; got != want {
			t.Errorf("%s: got %q, want %q", uri, got, want)
		}
	}
}

// chatBody is a chat of some size in some number of messages, as a program writes it, with an
// escape now and then.
func chatBody(size, messages int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"stream":true,"temperature":0.7,"messages":[`)
	for i := range messages {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"role":"user","content":"Say \"hello\" number %d,\nplease. `, i)
		for end := size * (i + 1) / messages; b.Len() < end-20; {
			b.WriteString(`lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam\n`)
		}
		b.WriteString(`"}`)
	}
	b.WriteString(`],"model":"llama"}`)
	return b.Bytes()
}

func BenchmarkScan(b *testing.B) {
	for _, c := range []struct {
		name           string
		size, messages int
	}{
		{"1KiB", 1 << 10, 3},
		{"100KiB/50messages", 100 << 10, 50},
		{"100KiB/1message", 100 << 10, 1},
		{"1MiB/500messages", 1 << 20, 500},
	} {
		raw := chatBody(c.size, c.messages)
		for name, messages := range map[string]string{"chain": "messages", "nochain": "none"} {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(raw)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := scanJSON(raw, messages); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

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
