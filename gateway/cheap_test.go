package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pulley-lb/pulley/subjects"
)

// A worker of an older version does not say how many calls it runs at once: a cheap call goes through the queue to it.
func TestCheapCallForAnOlderWorker(t *testing.T) {
	g := runGateway(t, func() [][]subjects.Frame {
		body := []byte(`{"count":3}`)
		return [][]subjects.Frame{{
			{Kind: subjects.KindHead, Head: &subjects.Head{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Length: int64(len(body))}},
			{Kind: subjects.KindData, Data: body}, {Kind: subjects.KindEnd, End: &subjects.End{}},
		}}
	})
	for _, path := range []string{"/tokenize", "/v1/messages/count_tokens"} {
		resp, err := g.client.Post("http://gateway"+path, "application/json", strings.NewReader(`{"model":"m","stream":true}`))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(b) != `{"count":3}` {
			t.Errorf("%s: %d %q", path, resp.StatusCode, b)
		}
	}
}
