package plain_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pulley-lb/pulley/plain"
)

// get returns the error of a request.
func get(t *testing.T, client *http.Client, url string) error {
	t.Helper()
	resp, err := client.Get(url)
	if err == nil {
		resp.Body.Close()
		t.Fatalf("%s answers", url)
	}
	return err
}

func TestErrorsOfConnections(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().String()
	free.Close()
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-r.Context().Done()
			return
		}
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			c.Close()
		}
	}))
	defer cut.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, twice := net.Listen("tcp", taken.Addr().String())
	_, plainText := tls.Dial("tcp", closed, nil)
	impatient := &http.Client{Timeout: 20 * time.Millisecond}

	for about, tt := range map[string]struct {
		err  error
		want string
	}{
		"nobody listens":         {get(t, http.DefaultClient, "http://"+closed+"/v1/models"), "cannot connect to " + closed + ": connection refused"},
		"nobody listens, no URL": {plainText, "cannot connect to " + closed + ": connection refused"},
		"closed":                 {get(t, http.DefaultClient, cut.URL+"/x"), cut.URL + "/x: the connection was closed"},
		"slow":                   {get(t, impatient, cut.URL+"/slow"), cut.URL + "/slow: no answer in time"},
		"unknown authority":      {get(t, http.DefaultClient, secure.URL), secure.URL + ": its certificate is of an unknown authority"},
		"TLS to one without":     {get(t, http.DefaultClient, "https"+cut.URL[len("http"):]+"/x"), "https" + cut.URL[len("http"):] + "/x: the other side does not speak TLS"},
		"port in use":            {fmt.Errorf("--listen: %w", twice), "--listen: cannot listen on " + taken.Addr().String() + ": address already in use"},
		"no such host":           {&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "gpu-1", Server: "10.0.0.1:53", IsNotFound: true}}, "no such host: gpu-1"},
		"not our address":        {&net.OpError{Op: "listen", Addr: &net.TCPAddr{IP: net.IPv4(1, 2, 3, 4), Port: 80}, Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}, "cannot listen on 1.2.3.4:80: this machine does not have that address"},
		"read":                   {&net.OpError{Op: "read", Addr: &net.TCPAddr{IP: net.IPv4(1, 2, 3, 4), Port: 80}, Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "connection to 1.2.3.4:80: the other side closed the connection"},
	} {
		if got := plain.Error(tt.err); got != tt.want {
			t.Errorf("%s: %q\ngives %q\nwant  %q", about, tt.err, got, tt.want)
		}
	}
}

func TestErrorsOfEverythingElse(t *testing.T) {
	_, noFile := os.ReadFile(filepath.Join("nowhere", "x"))
	_, aFolder := os.ReadFile(".")
	_, notNumber := strconv.Atoi("x")
	_, tooLarge := strconv.ParseInt("99999999999999999999", 10, 64)
	_, notDuration := time.ParseDuration("soon")
	var number struct{ Slots int }
	for about, tt := range map[string]struct {
		err  error
		want string
	}{
		"nil":                     {nil, ""},
		"our own":                 {errors.New("pool a has no worker: start one"), "pool a has no worker: start one"},
		"file":                    {fmt.Errorf("--config: %w", noFile), "--config: nowhere/x: no such file or directory"},
		"file named twice":        {fmt.Errorf("plot nowhere/x: %w", noFile), "plot nowhere/x: no such file or directory"},
		"folder":                  {aFolder, ".: is a directory"},
		"number":                  {fmt.Errorf("--slots: %w", notNumber), `--slots: "x" is not a number`},
		"large number":            {tooLarge, `"99999999999999999999" is out of range`},
		"duration":                {notDuration, `invalid duration "soon"`},
		"JSON":                    {json.Unmarshal([]byte("{x"), &number), "not valid JSON at byte 2: invalid character 'x' looking for beginning of object key string"},
		"JSON text":               {fmt.Errorf("line 3: %w", errors.New("jsontext: invalid character 'x' at start of value")), "line 3: invalid character 'x' at start of value"},
		"JSON type":               {json.Unmarshal([]byte(`{"Slots":"x"}`), &number), "Slots: a JSON string is not possible here"},
		"deadline":                {fmt.Errorf("policy: %w", context.DeadlineExceeded), "policy: no answer in time"},
		"several":                 {errors.Join(fmt.Errorf("a: %w", context.DeadlineExceeded), fmt.Errorf("b: %w", io.EOF)), "a: no answer in time\nb: the connection was closed"},
		"NATS timeout":            {fmt.Errorf("bucket X: %w", nats.ErrTimeout), "bucket X: no answer in time"},
		"NATS, nobody":            {nats.ErrNoResponders, "nobody answers"},
		"NATS, no server":         {nats.ErrNoServers, "no NATS server can be reached"},
		"NATS, closed":            {fmt.Errorf("ask: %w", nats.ErrConnectionClosed), "ask: the connection to NATS is closed"},
		"NATS, not in our table":  {fmt.Errorf("ask: %w", nats.ErrMaxPayload), "ask: maximum payload exceeded"},
		"JetStream":               {fmt.Errorf("dead letter 9: %w", jetstream.ErrMsgNotFound), "dead letter 9: message not found"},
		"JetStream, in the reply": {fmt.Errorf("stream: %w", &jetstream.APIError{Code: 503, ErrorCode: 10008, Description: "insufficient resources"}), "stream: insufficient resources"},
		"JetStream, no stream":    {jetstream.ErrNoStreamResponse, "the stream does not answer"},
	} {
		if got := plain.Error(tt.err); got != tt.want {
			t.Errorf("%s: %q\ngives %q\nwant  %q", about, tt.err, got, tt.want)
		}
	}
}

// No text of the NATS client comes through with the name of its package.
func TestNoErrorNamesItsPackage(t *testing.T) {
	for _, err := range []error{nats.ErrAuthorization, nats.ErrBadSubscription, nats.ErrDisconnected, nats.ErrInvalidMsg, nats.ErrSlowConsumer, nats.ErrStaleConnection,
		jetstream.ErrStreamNotFound, jetstream.ErrBucketNotFound, jetstream.ErrKeyNotFound, jetstream.ErrJetStreamNotEnabled, jetstream.ErrConsumerNotFound, jetstream.ErrNoKeysFound} {
		if got := plain.Error(fmt.Errorf("do: %w", err)); regexp.MustCompile(`nats:|err_code|jetstream:`).MatchString(got) {
			t.Errorf("%v gives %q", err, got)
		}
	}
}
