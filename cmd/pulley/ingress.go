package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
)

// ingress is the API of a gateway, or of any other server with the API of OpenAI.
type ingress struct {
	url, keyEnv string
}

func (in *ingress) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&in.url, "url", "http://127.0.0.1:8080", "base `URL` of the API")
	fs.StringVar(&in.keyEnv, "api-key-env", "OPENAI_API_KEY", "environment `variable` with the API key")
}

// send sends a request with a JSON body; see stream.
func (in *ingress) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	return in.stream(ctx, method, path, "application/json", bytes.NewReader(body))
}

// ask sends a request and decodes the answer into v.
func (in *ingress) ask(ctx context.Context, method, path string, body []byte, v any) error {
	resp, err := in.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(v); err != nil {
		return fmt.Errorf("answer of %s: %w", in.url, err)
	}
	return nil
}

// stream sends a request, and returns the error that a refusal contains.
func (in *ingress) stream(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(strings.TrimSuffix(in.url, "/"), "/v1")+path, body)
	if err != nil {
		return nil, cli.Usagef("--url %q: must be a URL such as http://127.0.0.1:8080", in.url)
	}
	r.Header.Set("Content-Type", contentType)
	if key := os.Getenv(in.keyEnv); key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; is 'pulley up' or 'pulley gateway' running?", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	why := cmp.Or(errorIn(text), http.StatusText(resp.StatusCode))
	switch resp.StatusCode {
	case http.StatusNotFound:
		return nil, cli.NotFoundf("%s", why)
	case http.StatusUnauthorized:
		return nil, cli.Refusedf("%s; set $%s to a key ('pulley key add')", strings.TrimSuffix(why, "."), in.keyEnv)
	case http.StatusForbidden, http.StatusTooManyRequests, http.StatusConflict, http.StatusInsufficientStorage:
		return nil, cli.Refusedf("%s", why)
	}
	return nil, fmt.Errorf("status %d: %s", resp.StatusCode, why)
}

// errorIn returns the message of an error in the form of OpenAI's API; "" if there is none.
func errorIn(text []byte) string {
	var e struct{ Error struct{ Message string } }
	if json.Unmarshal(text, &e) != nil {
		return ""
	}
	return e.Error.Message
}
