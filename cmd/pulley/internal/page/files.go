package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"net/http"
	"path"
	"time"

	"github.com/pulley-lb/pulley/gateway"
)

//go:embed static
var static embed.FS

// types are the content types of the files, by extension: what the machine says of them does not matter.
var types = map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

// secure are headers of all that the page is made of. It runs its own script and no other, in no frame, talks to its own origin
// alone, and its script cannot make markup of text.
var secure = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
	"Cache-Control":                "no-cache",
}

// Admin is what the admin port serves.
func (p *Page) Admin() gateway.AdminPage {
	return gateway.AdminPage{Files: secured(http.HandlerFunc(files)), Live: secured(http.HandlerFunc(p.live)), Do: secured(http.HandlerFunc(p.do))}
}

func secured(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range secure {
			w.Header().Set(name, value)
		}
		h.ServeHTTP(w, r)
	})
}

// files serves / and the files below /page/.
func files(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	if r.URL.Path == "/" {
		name = "index.html"
	}
	b, err := static.ReadFile("static/" + name)
	if err != nil || r.URL.Path != "/" && r.URL.Path != "/page/"+name {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", types[path.Ext(name)])
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(b)))
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}
