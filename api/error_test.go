package api

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestErrorsNameNoAddress(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`engine e1: dial tcp 10.0.0.7:8000: connect: connection refused`, `engine e1: dial tcp [address]: connect: connection refused`},
		{`engine 10.0.0.7:8000: 500 Internal Server Error`, `engine [address]: 500 Internal Server Error`},
		{`Post "http://gpu-7.internal:8000/v1/x?a=b": EOF`, `Post "[address]": EOF`},
		{`read tcp 10.0.0.1:4000->10.0.0.7:8000: i/o timeout`, `read tcp [address]->[address]: i/o timeout`},
		{`dial tcp [fd00::7]:8000: connect: no route to host`, `dial tcp [address]: connect: no route to host`},
		{`dial tcp [fe80::1%eth0]:80: refused`, `dial tcp [address]: refused`},
		{`engine gpu-7:8000: broke off`, `engine [address]: broke off`},
		{`engine gpu-7.internal: broke off`, `engine [address]: broke off`},
		{`engine localhost:8000: broke off`, `engine [address]: broke off`},
		{`dial tcp: lookup gpu-7.internal on 10.0.0.2:53: no such host`, `dial tcp: [address] on [address]: no such host`},
		{`lookup gpu-7: no such host`, `[address]: no such host`},
		{`x509: certificate is valid for a.internal, b.internal, not gpu-7.internal`, `x509: certificate is [address]`},
		{`x509: cannot validate certificate for 10.0.0.7 because it has none`, `x509: cannot validate certificate for [address] because it has none`},
		{`no worker serves "llama3:8b"; attempts: 3; last error: status 500, silent for 1m0.5s`, `no worker serves "llama3:8b"; attempts: 3; last error: status 500, silent for 1m0.5s`},
		{`engine e1: cannot connect to 10.0.0.7:8000: connection refused`, `engine e1: cannot connect to [address]: connection refused`},
		{`engine e1: no such host: gpu-7; try again`, `engine e1: no such host: [address]; try again`},
		{`engine e1: cannot look up host gpu-7: server misbehaving`, `engine e1: cannot look up host [address]: server misbehaving`},
		{`engine e1: its certificate is not for gpu-7.internal`, `engine e1: its certificate is not for [address]`},
		{`engine e1: the answer broke off: unexpected EOF`, `engine e1: the answer broke off: unexpected EOF`},
	} {
		for _, a := range []API{Chat, Messages, Responses, Other} {
			e := Errorf(502, "upstream_lost", "%s", c.in)
			var b struct{ Error struct{ Message string } }
			if err := json.Unmarshal(e.Body(a, "id"), &b); err != nil || b.Error.Message != c.want {
				t.Errorf("%s: got %q, %v, want %q", a, b.Error.Message, err, c.want)
			}
			want, _ := json.Marshal(c.want)
			if event := string(e.Event(a, "id", "m")); !strings.Contains(event, strings.Trim(string(want), `"`)) {
				t.Errorf("%s: got %s, want %s in it", a, event, want)
			}
		}
	}
	// What the client itself has sent stays.
	if b := string(BadRequest("model", "unknown model http://10.0.0.7:80").Body(Chat, "id")); !strings.Contains(b, "http://10.0.0.7:80") {
		t.Errorf("got %s", b)
	}
}

func TestErrorsBelowMessages(t *testing.T) {
	for path, anthropic := range map[string]bool{
		"/v1/messages": true, "/v1/messages?beta=true": true, "/v1/messages/count_tokens": true, "/v1/messages/count_tokens?beta=true": true,
		"/v1/messages/batches": true, "/v1/messages\x00": true, "/v1/messages;x": true, "/v1/messages..": true, "/v1/chat/completions": false, "/v1/messagesx": false, "/v1/messages-2": false, "/v1/models": false,
	} {
		b := string(Errorf(404, "model_not_found", "no").Body(Of(path), "id"))
		if got := strings.Contains(b, `"type":"error"`) && strings.Contains(b, `"not_found_error"`) && strings.Contains(b, `"request_id":"id"`); got != anthropic {
			t.Errorf("%s: got %s", path, b)
		}
	}
}
