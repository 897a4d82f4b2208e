package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/clitest"
)

// batchServer has a batch that has ended, one that runs and one whose input was wrong.
func batchServer(t *testing.T) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	reply := func(pattern, body string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
	}
	const done = `{"id":"batch_done","status":"completed","endpoint":"/v1/embeddings","model":"m","output_file_id":"file-out","created_at":1700000000,"request_counts":{"total":2,"completed":2,"failed":0}}`
	const runs = `{"id":"batch_runs","status":"in_progress","endpoint":"/v1/embeddings","request_counts":{"total":9,"completed":3,"failed":1}}`
	const wrong = `{"id":"batch_wrong","status":"failed","errors":{"data":[{"code":"invalid_json_line","message":"this line is no JSON","line":3}]}}`
	reply("GET /v1/batches", `{"data":[`+runs+","+done+`],"has_more":true}`)
	reply("GET /v1/batches/batch_done", done)
	reply("GET /v1/batches/batch_runs", runs)
	reply("GET /v1/batches/batch_wrong", wrong)
	reply("POST /v1/batches/batch_runs/cancel", strings.Replace(runs, "in_progress", "cancelling", 1))
	const messages = `{"id":"msgbatch_%s","type":"message_batch","processing_status":"%s","created_at":"2023-11-14T22:13:21Z","request_counts":{"expired":%d},"progress":{"total":3,"completed":1,"failed":2}}`
	ended := fmt.Sprintf(messages, "done", "ended", 0)
	reply("GET /v1/messages/batches", `{"data":[`+ended+`],"has_more":false}`)
	reply("GET /v1/messages/batches/msgbatch_done", ended)
	reply("GET /v1/messages/batches/msgbatch_late", fmt.Sprintf(messages, "late", "ended", 1))
	reply("GET /v1/messages/batches/msgbatch_runs", fmt.Sprintf(messages, "runs", "in_progress", 0))
	reply("POST /v1/messages/batches/msgbatch_runs/cancel", fmt.Sprintf(messages, "runs", "canceling", 0))
	reply("GET /v1/messages/batches/msgbatch_done/results", `{"custom_id":"a","result":{"type":"succeeded"}}`+"\n"+`{"custom_id":"b","result":{"type":"errored"}}`+"\n")
	reply("GET /v1/messages/batches/msgbatch_late/results", `{"custom_id":"a","result":{"type":"succeeded"}}`+"\n")
	reply("GET /v1/files", `{"data":[{"id":"file-out","filename":"out.jsonl","purpose":"batch_output","bytes":2048}]}`)
	reply("GET /v1/files/file-out/content", "{}\n{}\n")
	reply("DELETE /v1/files/file-out", `{"deleted":true}`)
	mux.HandleFunc("POST /v1/files", func(w http.ResponseWriter, r *http.Request) {
		f, h, err := r.FormFile("file")
		if err != nil || r.FormValue("purpose") != "batch" {
			t.Errorf("%v %q", err, r.FormValue("purpose"))
			return
		}
		b, _ := io.ReadAll(f)
		fmt.Fprintf(w, `{"id":"file-%s-%d"}`, h.Filename, len(b))
	})
	mux.HandleFunc("POST /v1/batches", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		switch string(b) {
		case `{"completion_window":"24h","endpoint":"/v1/embeddings","input_file_id":"file-in.jsonl-24"}`:
			io.WriteString(w, done)
		case `{"completion_window":"2h","endpoint":"/v1/responses","input_file_id":"file-stdin.jsonl-1"}`:
			io.WriteString(w, wrong)
		default:
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"error":{"message":%q}}`, b)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(404)
		io.WriteString(w, `{"error":{"message":"No batch found."}}`)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func TestBatchVerbs(t *testing.T) {
	s := batchServer(t)
	file := filepath.Join(t.TempDir(), "in.jsonl")
	if err := os.WriteFile(file, []byte(`{"url":"/v1/embeddings"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line string
		code int
		out  string // a pattern of both outputs
	}{
		{"batch submit " + file, 0, `^batch_done\n$`},
		{"batch submit --wait " + file, 0, `^batch_done\ncompleted 2/2\n$`},
		{"batch submit - --endpoint /v1/responses --within 2h --wait", 1, `batch_wrong\nfailed\n.*the batch failed: this line is no JSON \(line 3\)`},
		{"batch submit nosuch.jsonl", 1, `nosuch.jsonl`},
		{"batch submit", 2, `missing argument: FILE`},
		{"batch ls", 0, `(?s)ID .*\nbatch_done +\S+ +completed +2/2.*batch_runs +\S+ +in_progress +4/9.*--number`},
		{"batch ls", 0, `(?s)msgbatch_done +\S+ +completed +3/3 +2 .*batch_done .*batch_runs`},
		{"batch ls -n 2", 0, `(?s)^ID .*msgbatch_done .*\nbatch_done .*\nthere are more`},
		{"batch info msgbatch_late", 0, `(?s)batch +msgbatch_late\nstatus +expired\nprogress +3/3\nfailed +2\nendpoint +/v1/messages\n`},
		{"batch cancel msgbatch_runs", 0, `^batch msgbatch_runs cancelling\n$`},
		{"batch results msgbatch_done", 0, `^{"custom_id":"a".*\n{"custom_id":"b".*\n$`},
		{"batch results msgbatch_done --failed", 0, `^{"custom_id":"b".*\n$`},
		{"batch results msgbatch_late --failed", 3, `no request of the batch msgbatch_late has failed`},
		{"batch results msgbatch_runs", 4, `is in_progress`},
		{"batch ls -o json", 0, `"id": "batch_runs"`},
		{"batch info batch_done", 0, `(?s)batch +batch_done.*status +completed.*output file +file-out`},
		{"batch info batch_wrong", 0, `line 3: this line is no JSON`},
		{"batch info none", 3, `No batch found`},
		{"batch cancel batch_runs", 0, `^batch batch_runs cancelling\n$`},
		{"batch results batch_done", 0, `^{}\n{}\n$`},
		{"batch results batch_done --failed", 3, `no request of the batch batch_done has failed`},
		{"batch results batch_runs", 4, `is in_progress`},
		{"file ls", 0, `(?s)ID .*file-out +\S+ +2048 B +batch_output +out.jsonl`},
		{"file rm file-out", 0, `^file file-out removed\n$`},
		{"file rm none", 3, `No batch found`},
	} {
		root := newRootCommand()
		root.SetIn(strings.NewReader("x"))
		code, stdout, stderr := clitest.Run(root, append(strings.Fields(c.line), "--url", s.URL)...)
		if out := stdout + stderr; code != c.code || !regexp.MustCompile(c.out).MatchString(out) {
			t.Errorf("%s: exit code %d, %q; want %d, %s", c.line, code, out, c.code, c.out)
		}
	}
}
