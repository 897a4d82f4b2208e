package engine

import (
	"context"
	"net/http"
)

// Dialects is the list of all dialects.
var Dialects = dialects

// Detect returns the dialect of the engine at a URL, which may end in /v1.
func Detect(ctx context.Context, client *http.Client, baseURL string) (Dialect, error) {
	d, _, err := detect(ctx, newAsker(client, baseURL, ""))
	return d, err
}

// ProbeAll is Local at other addresses.
var ProbeAll = probeAll

// ReadPages is what each of a dialect's pages says when its body is this one. The error says that it is no such page.
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
