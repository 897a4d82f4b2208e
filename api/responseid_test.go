package api

import (
	"strings"
	"testing"
)

func TestResponseID(t *testing.T) {
	long := strings.Repeat("x", MaxResponseID)
	for body, want := range map[string]string{
		`{"id":"resp_1","object":"response"}`:                         "resp_1",
		` {"object":"response","output":[{"id":"no"}],"id":"resp_2"}`: "resp_2",
		`{"id":"resp_é"`:                      "resp_é",
		`{"id":"resp_`:                        "",
		`{"error":{"message":"no","id":"x"}}`: "",
		`{"id":7}`:                            "",
		`{"id":"` + long + `"}`:               "",
		`[{"id":"x"}]`:                        "",
		``:                                    "",
		`{"response":{"object":"response","id":"inner"}}`:                   "inner",
		`{"type":"response.created","response":{"a":{"id":"no"},"id":"r"}}`: "r",
	} {
		if got := ResponseID([]byte(body), false); got != want {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
	const stream = ": working\n\nevent: response.created\r\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"object\":\"response\",\"id\":\"resp_3\",\"output\":[]}}\r\n\r\ndata: [DONE]\n\n"
	for cut := range stream {
		want := ""
		if cut > strings.Index(stream, `resp_3"`)+len(`resp_3"`)-1 {
			want = "resp_3"
		}
		if got := ResponseID([]byte(stream[:cut]), true); got != want {
			t.Errorf("%q: got %q, want %q", stream[:cut], got, want)
		}
	}
	for body, want := range map[string]string{
		`{"previous_response_id":"resp_1","model":"m"}`: "resp_1", `{"model":"m","previous_response_id": "resp_\u0031" }`: "resp_1", `{"model":"m","previous_response_id":null}`: "",
		`{"model":"m","previous_response_id":7}`: "", `{"model":"m"}`: "", `{"model":"m","previous_response_id":"` + long + `"}`: "", `{"model":"m","Previous_response_id":"x"}`: "",
	} {
		if c, err := scanOf("/v1/responses", body); err != nil || c.Previous != want {
			t.Errorf("%s: got %q, %v, want %q", body, c.Previous, err, want)
		}
	}
}
