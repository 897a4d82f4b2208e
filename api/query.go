package api

import (
	"net/url"
	"strings"
)

// secretParams are parameters of queries that hold credentials, by Google's, Azure's and OAuth's convention and what comes
// close to them; in lower case, with "_" for "-".
var secretParams = map[string]bool{
	"key": true, "api_key": true, "apikey": true, "x_api_key": true, "x_goog_api_key": true, "subscription_key": true, "ocp_apim_subscription_key": true,
	"access_token": true, "auth_token": true, "id_token": true, "bearer_token": true, "token": true, "authorization": true, "auth": true,
	"secret": true, "client_secret": true, "password": true,
}

// WithoutKeys returns a query without the parameters that hold credentials, in whatever case and encoding their names are.
// The others stay byte for byte.
func WithoutKeys(query string) string {
	if query == "" {
		return ""
	}
	kept, dropped := make([]string, 0, 8), false
	for part := range strings.SplitSeq(query, "&") {
		var keep []string
		for piece := range strings.SplitSeq(part, ";") { // some servers separate parameters by it
			if isSecretParam(piece) {
				dropped = true
			} else {
				keep = append(keep, piece)
			}
		}
		if len(keep) > 0 {
			kept = append(kept, strings.Join(keep, ";"))
		}
	}
	if !dropped {
		return query
	}
	return strings.Join(kept, "&")
}

// isSecretParam says that a parameter, such as api-key=x, holds a credential: as it is, or decoded up to three times.
func isSecretParam(param string) bool {
	name, _, _ := strings.Cut(param, "=")
	for range 4 {
		plain := strings.ToLower(strings.Trim(name, " \t[]"))
		if secretParams[strings.ReplaceAll(plain, "-", "_")] {
			return true
		}
		again, err := url.QueryUnescape(name)
		if err != nil || again == name {
			return false
		}
		name, _, _ = strings.Cut(again, "=")
	}
	return false
}
