package engine

import (
	"context"
	"net/http"
	"time"
)

// Dialects is the list of all dialects.
var Dialects = dialects

// Detect returns the dialect of the engine at a URL, which may end in /v1.
func Detect(ctx context.Context, client *http.Client, baseURL string) (Dialect, error) {
	a, err := newAsker(client, baseURL, "")
	if err != nil {
		return "", err
	}
	d, _, err := detect(ctx, a)
	return d, err
}

// ProbeAll is Local at other addresses.
var ProbeAll = probeAll

// ReadPages returns what each page of a dialect reports if its body is this one, or an error if it
// is not such a page.
func ReadPages(d Dialect, body []byte) (found []Status, errs []error) {
	health, rest := d.pages()
	for _, p := range append(rest, health) {
		if p.read != nil {
			var st Status
			errs = append(errs, p.read(body, &st))
			st.derive()
			found = append(found, st)
		}
	}
	return found, errs
}

// Fresh reports whether the load signals are recent enough to decide on: four scrapes.
func (s Status) Fresh(now time.Time) bool { return s.Age(now) <= 2*time.Second }
