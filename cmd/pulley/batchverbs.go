package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/term"
)

// batchInfo is a batch as the API shows it.
type batchInfo struct {
	ID        string            `json:"id"`
	Type      string            `json:"type,omitempty"` // message_batch for one of Anthropic's API, which is shown in the same terms
	Status    string            `json:"status"`
	Endpoint  string            `json:"endpoint"`
	Model     string            `json:"model"`
	Input     string            `json:"input_file_id"`
	Output    string            `json:"output_file_id"`
	ErrorFile string            `json:"error_file_id"`
	Created   int64             `json:"created_at"`
	Begun     int64             `json:"in_progress_at"`
	Expires   int64             `json:"expires_at"`
	Metadata  map[string]string `json:"metadata"`
	Late      int               `json:"late"` // requests that may run as ordinary calls now, since it would miss its window
	Counts    struct {
		Total     int `json:"total"`
		Completed int `json:"completed"`
		Failed    int `json:"failed"`
	} `json:"request_counts"`
	Errors *struct {
		Data []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Line    int    `json:"line"`
		} `json:"data"`
	} `json:"errors"`
	Usage struct {
		Input  int64 `json:"input_tokens"`
		Output int64 `json:"output_tokens"`
	} `json:"usage"`
}

func (b *batchInfo) messages() bool { return b.Type == "message_batch" }

// tokens is what the answers took; "" if the API does not say.
func (b *batchInfo) tokens() string {
	if b.messages() {
		return ""
	}
	return fmt.Sprintf("%d in, %d out", b.Usage.Input, b.Usage.Output)
}

func (b *batchInfo) ended() bool {
	return slices.Contains([]string{"completed", "failed", "expired", "cancelled"}, b.Status)
}

// progress is how far a batch is, and how long the rest takes at the pace so far.
func (b *batchInfo) progress(now time.Time) string {
	done, total := b.Counts.Completed+b.Counts.Failed, b.Counts.Total
	if total == 0 {
		return ""
	}
	text := fmt.Sprintf("%d/%d", done, total)
	if b.Status == "in_progress" && done*10 >= total && done < total && b.Begun > 0 {
		left := now.Sub(time.Unix(b.Begun, 0)) * time.Duration(total-done) / time.Duration(done)
		text += ", " + term.Age(left) + " left"
	}
	return text
}

// late says that it would miss its window; "" if it would not.
func (b *batchInfo) late() string {
	if b.Late == 0 {
		return ""
	}
	return fmt.Sprintf("it would miss its window: up to %d requests run as ordinary calls", b.Late)
}

// messageBatchInfo is a batch as Anthropic's API shows it.
type messageBatchInfo struct {
	ID        string     `json:"id"`
	Type      string     `json:"type"`
	Status    string     `json:"processing_status"`
	Created   time.Time  `json:"created_at"`
	Expires   time.Time  `json:"expires_at"`
	Cancelled *time.Time `json:"cancel_initiated_at"`
	Late      int        `json:"late"`
	Counts    struct {
		Expired int `json:"expired"`
	} `json:"request_counts"`
	Progress struct {
		Total     int `json:"total"`
		Completed int `json:"completed"`
		Failed    int `json:"failed"`
	} `json:"progress"`
}

// info is m in the terms of the other batches.
func (m *messageBatchInfo) info() batchInfo {
	b := batchInfo{ID: m.ID, Type: m.Type, Endpoint: "/v1/messages", Created: m.Created.Unix(), Begun: m.Created.Unix(), Expires: m.Expires.Unix(), Late: m.Late, Counts: m.Progress}
	switch {
	case m.Status == "canceling":
		b.Status = "cancelling"
	case m.Status != "ended":
		b.Status = m.Status
	case m.Counts.Expired > 0:
		b.Status = "expired"
	case m.Cancelled != nil:
		b.Status = "cancelled"
	default:
		b.Status = "completed"
	}
	return b
}

// messagesPrefix begins the ids of batches of Anthropic's API.
const messagesPrefix = "msgbatch_"

// batch calls a batch, of either API. below is the path below it.
func (in *ingress) batch(ctx context.Context, method, id, below string) (b batchInfo, err error) {
	if !strings.HasPrefix(id, messagesPrefix) {
		err = in.ask(ctx, method, "/v1/batches/"+url.PathEscape(id)+below, nil, &b)
		return b, err
	}
	var m messageBatchInfo
	err = in.ask(ctx, method, "/v1/messages/batches/"+url.PathEscape(id)+below, nil, &m)
	return m.info(), err
}

// batchList is a list of batches.
type batchList struct {
	Data []batchInfo
	More bool
}

// batches returns the latest batches of both APIs.
func (in *ingress) batches(ctx context.Context, last int) (l batchList, err error) {
	var list struct {
		Data []batchInfo `json:"data"`
		More bool        `json:"has_more"`
	}
	var messages struct {
		Data []messageBatchInfo `json:"data"`
		More bool               `json:"has_more"`
	}
	if err := in.ask(ctx, http.MethodGet, fmt.Sprintf("/v1/batches?limit=%d", last), nil, &list); err != nil {
		return l, err
	}
	if err := in.ask(ctx, http.MethodGet, fmt.Sprintf("/v1/messages/batches?limit=%d", last), nil, &messages); err != nil {
		return l, err
	}
	l = batchList{list.Data, list.More || messages.More}
	for _, m := range messages.Data {
		l.Data = append(l.Data, m.info())
	}
	slices.SortStableFunc(l.Data, func(a, b batchInfo) int { return cmp.Compare(b.Created, a.Created) })
	if len(l.Data) > last {
		l.Data, l.More = l.Data[:last], true
	}
	return l, nil
}

// messageResults prints the results of a batch of messages; with failed only those without an answer.
func (in *ingress) messageResults(ctx context.Context, out io.Writer, id string, failed bool) error {
	resp, err := in.send(ctx, http.MethodGet, "/v1/messages/batches/"+url.PathEscape(id)+"/results", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines, printed := bufio.NewReader(resp.Body), false
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the results broke off: %w", err)
		}
		if err != nil && err != io.EOF {
			return err
		}
		var l struct {
			Result struct {
				Type string `json:"type"`
			} `json:"result"`
		}
		if failed && len(line) > 0 {
			if err := json.Unmarshal(line, &l); err != nil {
				return fmt.Errorf("a result is malformed: %w", err)
			}
		}
		if len(line) > 0 && !(failed && l.Result.Type == "succeeded") {
			printed = true
			if _, err := out.Write(line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
	}
	switch {
	case !printed && failed:
		return cli.NotFoundf("no request of the batch %s has failed", id)
	case !printed:
		return cli.NotFoundf("the batch %s has no results", id)
	}
	return nil
}

// apiVerb makes cmd a verb of the API.
func apiVerb(cmd *cobra.Command, do func(cmd *cobra.Command, in *ingress, args []string) error) *cobra.Command {
	in := &ingress{}
	in.addFlags(cmd.Flags())
	cmd.Flags().SortFlags = false
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return do(cmd, in, args) }
	return cmd
}

// apiListing makes cmd a verb of the API that prints a view.
func apiListing(cmd *cobra.Command, read func(ctx context.Context, in *ingress, args []string) (cli.View, error)) *cobra.Command {
	cli.AddOutput(cmd, cli.Table, cli.Wide, cli.JSON, cli.YAML)
	cmd.Flags().BoolP("watch", "w", false, "refresh every second, until Ctrl-C")
	return apiVerb(cmd, func(cmd *cobra.Command, in *ingress, args []string) error {
		return cli.ShowListing(cmd.Context(), cmd, cmd.CommandPath(), func() (cli.View, error) { return read(cmd.Context(), in, args) })
	})
}

func newBatchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "batch", Short: "Batches of requests: submit, list, cancel, results",
		Long: `A batch is a file of requests that run when there is room, within a day. It goes on
without a client, and its results are a file again: see docs/batch.md. A tenant sees
its own batches, with those of messages that came by Anthropic's API. The API key is that of the environment variable that --api-key-env
names.`,
	}
	cmd.AddCommand(newBatchSubmitCommand(), newBatchListCommand(), newBatchInfoCommand(), newBatchCancelCommand(), newBatchResultsCommand())
	return cmd
}

func newBatchSubmitCommand() *cobra.Command {
	var endpoint, window string
	var wait bool
	cmd := &cobra.Command{
		Use: "submit FILE", Short: "Upload a file of requests, and run it as a batch",
		Long: `Upload a file of requests, one JSON object in each line, and run it as a batch. Prints
the batch's id. FILE - is standard input. Without --endpoint it is the url of the
first request.`,
		Example: `  pulley batch submit requests.jsonl
  pulley batch submit requests.jsonl --within 2h --wait`,
		Args: cli.RequiredArgs("FILE"),
	}
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "`path` that the requests are for (default: that of the first)")
	cmd.Flags().StringVar(&window, "within", "24h", "`time` after which the batch ends with what was answered; 24h at most")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the batch has ended, and show its progress")
	return apiVerb(cmd, func(cmd *cobra.Command, in *ingress, args []string) error {
		ctx := cmd.Context()
		name, file := filepath.Base(args[0]), io.Reader(cmd.InOrStdin())
		if args[0] == "-" {
			name = "stdin.jsonl"
		} else {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			file = f
		}
		first := &firstLine{r: file}
		uploaded, err := in.upload(ctx, name, first)
		if err != nil {
			return err
		}
		body, err := json.Marshal(map[string]string{
			"input_file_id": uploaded, "endpoint": cmp.Or(endpoint, first.url(), "/v1/chat/completions"), "completion_window": window,
		})
		if err != nil {
			return err
		}
		var b batchInfo
		if err := in.ask(ctx, http.MethodPost, "/v1/batches", body, &b); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), b.ID)
		if !wait {
			return nil
		}
		return in.wait(ctx, &b, cmd.ErrOrStderr())
	})
}

// firstLine keeps the beginning of what is read.
type firstLine struct {
	r     io.Reader
	begin []byte
}

func (f *firstLine) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if room := 1<<20 - len(f.begin); room > 0 {
		f.begin = append(f.begin, p[:min(n, room)]...)
	}
	return n, err
}

// url is that of the first request; "" if it has none.
func (f *firstLine) url() string {
	line, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(string(f.begin), "\ufeff")), "\n")
	var l struct{ URL string }
	if json.Unmarshal([]byte(line), &l) != nil {
		return ""
	}
	return l.URL
}

// upload uploads the input of a batch, as it is read, and returns the file's id.
func (in *ingress) upload(ctx context.Context, name string, content io.Reader) (id string, err error) {
	reader, writer := io.Pipe()
	form := multipart.NewWriter(writer)
	go func() { // ends with the request, which closes the reader
		err := form.WriteField("purpose", "batch")
		if err == nil {
			var part io.Writer
			if part, err = form.CreateFormFile("file", name); err == nil {
				_, err = io.Copy(part, content)
			}
		}
		if err == nil { // else the form must not have an end
			err = form.Close()
		}
		writer.CloseWithError(err)
	}()
	defer reader.Close()
	resp, err := in.stream(ctx, http.MethodPost, "/v1/files", form.FormDataContentType(), reader)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var f fileInfo
	err = json.NewDecoder(resp.Body).Decode(&f)
	return f.ID, err
}

// wait waits until a batch has ended. It is an error if that was not with all its requests.
func (in *ingress) wait(ctx context.Context, b *batchInfo, out io.Writer) error {
	terminal, last := term.Of(out).Width > 0, ""
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		text := strings.TrimSpace(b.Status + " " + b.progress(time.Now()))
		switch {
		case terminal:
			fmt.Fprintf(out, "\r\x1b[K%s", text)
		case text != last:
			fmt.Fprintln(out, text)
		}
		if last = text; b.ended() {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		now := batchInfo{}
		if err := in.ask(ctx, http.MethodGet, "/v1/batches/"+url.PathEscape(b.ID), nil, &now); err != nil {
			return err
		}
		*b = now
	}
	if terminal {
		fmt.Fprintln(out)
	}
	if b.Errors != nil && len(b.Errors.Data) > 0 {
		e := b.Errors.Data[0]
		if e.Line == 0 {
			return fmt.Errorf("the batch %s: %s", b.Status, e.Message)
		}
		return fmt.Errorf("the batch %s: %s (line %d)", b.Status, e.Message, e.Line)
	}
	if b.Status != "completed" {
		return fmt.Errorf("the batch %s", b.Status)
	}
	return nil
}

func newBatchListCommand() *cobra.Command {
	var last int
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the batches", Long: "List the batches, the latest first.",
		Example: "  pulley batch ls\n  pulley batch ls -n 5 --watch",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().IntVarP(&last, "number", "n", 20, "show the latest n batches; 100 at most")
	return apiListing(cmd, func(ctx context.Context, in *ingress, _ []string) (cli.View, error) {
		list, err := in.batches(ctx, last)
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: list.Data, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{term.Fixed("ID"), term.Number("AGE"), term.Fixed("STATUS"), term.Fixed("PROGRESS"), term.Number("FAILED"), term.NonEmpty(term.Number("LATE")), term.NonEmpty(term.Text("MODEL")), term.Text("ENDPOINT"), term.Wide(term.Fixed("EXPIRES"))},
				Empty:   "no batches",
			}
			for _, b := range list.Data {
				t.Row(b.ID, term.Ago(time.Unix(b.Created, 0)), b.Status, b.progress(time.Now()), term.NonZero(b.Counts.Failed), term.NonZero(b.Late), b.Model, b.Endpoint, term.Clock(time.Unix(b.Expires, 0)))
			}
			p.Table(t)
			if list.More {
				p.Line("there are more; see --number")
			}
		}}, nil
	})
}

func newBatchInfoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "info ID", Short: "Describe a batch", Long: "Describe a batch: its state, its progress, its files, and what is wrong with its input.",
		Example: "  pulley batch info batch_0193…",
		Args:    cli.RequiredArgs("ID"),
	}
	return apiListing(cmd, func(ctx context.Context, in *ingress, args []string) (cli.View, error) {
		b, err := in.batch(ctx, http.MethodGet, args[0], "")
		if err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: b, Print: func(p *term.Page) {
			p.Fields(
				term.KV("batch", b.ID, term.Bold),
				term.KV("status", b.Status),
				term.KV("progress", b.progress(time.Now())),
				term.KV("failed", term.NonZero(b.Counts.Failed)),
				term.KV("late", b.late()),
				term.KV("endpoint", b.Endpoint),
				term.KV("model", b.Model),
				term.KV("tokens", b.tokens()),
				term.KV("created", term.Ago(time.Unix(b.Created, 0))+" ago"),
				term.KV("expires", term.Clock(time.Unix(b.Expires, 0))),
				term.KV("input file", b.Input),
				term.KV("output file", b.Output),
				term.KV("error file", b.ErrorFile),
			)
			if b.Errors != nil {
				for _, e := range b.Errors.Data {
					if e.Line == 0 { // of the whole
						p.Line("%s", e.Message)
						continue
					}
					p.Line("line %d: %s", e.Line, e.Message)
				}
			}
		}}, nil
	})
}

func newBatchCancelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "Cancel a batch", Long: "Cancel a batch. What was answered is kept; other requests end with the error batch_cancelled.",
		Example: "  pulley batch cancel batch_0193…",
		Args:    cli.RequiredArgs("ID"),
	}
	return apiVerb(cmd, func(cmd *cobra.Command, in *ingress, args []string) error {
		b, err := in.batch(cmd.Context(), http.MethodPost, args[0], "/cancel")
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "batch %s %s\n", b.ID, b.Status)
		return nil
	})
}

func newBatchResultsCommand() *cobra.Command {
	var failed bool
	cmd := &cobra.Command{
		Use: "results ID", Short: "Print the results of a batch",
		Long: `Print the results of a batch that has ended: one JSON object in each line, in any order.
Requests that failed are in another file: see --failed. The results of a batch of
messages are in one file; with --failed only those without an answer are printed.`,
		Example: `  pulley batch results batch_0193… > results.jsonl
  pulley batch results batch_0193… --failed`,
		Args: cli.RequiredArgs("ID"),
	}
	cmd.Flags().BoolVar(&failed, "failed", false, "print the requests that failed")
	return apiVerb(cmd, func(cmd *cobra.Command, in *ingress, args []string) error {
		b, err := in.batch(cmd.Context(), http.MethodGet, args[0], "")
		if err != nil {
			return err
		}
		file := b.Output
		if failed {
			file = b.ErrorFile
		}
		switch {
		case !b.ended():
			return cli.Refusedf("the batch %s is %s; its results are there when it has ended", b.ID, b.Status)
		case b.messages():
			return in.messageResults(cmd.Context(), cmd.OutOrStdout(), b.ID, failed)
		case file == "" && failed:
			return cli.NotFoundf("no request of the batch %s has failed", b.ID)
		case file == "":
			return cli.NotFoundf("the batch %s has no results", b.ID)
		}
		resp, err := in.send(cmd.Context(), http.MethodGet, "/v1/files/"+file+"/content", nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(cmd.OutOrStdout(), resp.Body)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the results broke off: %w", err)
		}
		return err
	})
}

// fileInfo is a file as the API shows it.
type fileInfo struct {
	ID      string `json:"id"`
	Name    string `json:"filename"`
	Purpose string `json:"purpose"`
	Size    int64  `json:"bytes"`
	Created int64  `json:"created_at"`
	Expires int64  `json:"expires_at"`
}

func newFileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "file", Short: "Files of batches: list, remove",
		Long: `Files are the inputs and results of batches. They are removed when they expire, after 30
days. A tenant sees its own files. The API key is that of the environment variable
that --api-key-env names.`,
	}
	cmd.AddCommand(newFileListCommand(), newFileRemoveCommand())
	return cmd
}

func newFileListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the files", Long: "List the files, the latest first.",
		Example: "  pulley file ls",
		Args:    cobra.NoArgs,
	}
	return apiListing(cmd, func(ctx context.Context, in *ingress, _ []string) (cli.View, error) {
		var list struct {
			Data []fileInfo `json:"data"`
		}
		if err := in.ask(ctx, http.MethodGet, "/v1/files", nil, &list); err != nil {
			return cli.View{}, err
		}
		return cli.View{Value: list.Data, Print: func(p *term.Page) {
			t := term.Table{
				Columns: []term.Column{term.Fixed("ID"), term.Number("AGE"), term.Number("SIZE"), term.Fixed("PURPOSE"), term.Text("NAME"), term.Wide(term.Fixed("EXPIRES"))},
				Empty:   "no files",
			}
			for _, f := range list.Data {
				t.Row(f.ID, term.Ago(time.Unix(f.Created, 0)), term.Bytes(f.Size), f.Purpose, f.Name, term.Clock(time.Unix(f.Expires, 0)))
			}
			p.Table(t)
		}}, nil
	})
}

func newFileRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm ID...", Aliases: []string{"delete"}, Short: "Remove files", Long: "Remove files. The input of a batch that has not ended cannot be removed.",
		Example: "  pulley file rm file-0193…",
		Args:    cli.RequiredArgs("ID..."),
	}
	return apiVerb(cmd, func(cmd *cobra.Command, in *ingress, args []string) error {
		for _, id := range args {
			var gone struct{ Deleted bool }
			if err := in.ask(cmd.Context(), http.MethodDelete, "/v1/files/"+url.PathEscape(id), nil, &gone); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "file %s removed\n", id)
		}
		return nil
	})
}
