package worker

import (
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/pulley-lb/pulley/api"
)

// maxRedirects bounds the redirects of one call.
const maxRedirects = 3

// doors are the paths to which an engine may redirect a call.
var doors = func() *api.Doors {
	d, err := api.NewDoors(nil)
	if err != nil {
		panic(err) // it has no pattern that could be wrong
	}
	return d
}()

// send makes a call. A redirect of the engine to itself that keeps method and body is followed, since clients get none:
// they cannot reach the engine.
func (e *engineCalls) send(transport http.RoundTripper, r *http.Request) (*http.Response, error) {
	for n := 0; ; n++ {
		resp, err := transport.RoundTrip(r)
		if err != nil || resp.StatusCode != http.StatusTemporaryRedirect && resp.StatusCode != http.StatusPermanentRedirect || n == maxRedirects {
			return resp, err
		}
		to := e.redirect(r.URL, resp.Header.Get("Location"))
		if to == nil {
			return resp, nil
		}
		io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
		resp.Body.Close()
		r = r.WithContext(r.Context())
		r.URL = to
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// redirect is where a call goes that the engine redirects; nil if that is not followed: to another host, or to a path that
// is neither one of inference nor the call's own with or without a slash at the end.
func (e *engineCalls) redirect(from *url.URL, location string) *url.URL {
	to, err := from.Parse(location)
	if location == "" || err != nil || to.Scheme != from.Scheme || to.Host != from.Host || to.User != nil {
		return nil
	}
	if strings.TrimSuffix(to.EscapedPath(), "/") == strings.TrimSuffix(from.EscapedPath(), "/") {
		return to
	}
	base, err := url.Parse(e.base)
	if err != nil {
		return nil
	}
	path, below := strings.CutPrefix(to.EscapedPath(), strings.TrimSuffix(base.EscapedPath(), "/"))
	at, err := url.Parse(path)
	if !below || err != nil {
		return nil
	}
	if at, err = api.NormalURL(at); err != nil || at.EscapedPath() != path || !doors.Allows(at) {
		return nil
	}
	return to
}
