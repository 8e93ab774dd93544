package route_test

import (
	"strings"
	"testing"

	"github.com/pgidem/pgidem/internal/route"
)

func TestCompileErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, pattern string
		want          string // part of the advice
	}{
		{"empty", "", "write [METHOD ]PATH"},
		{"method alone", "POST", "begin it with a slash"},
		{"method and a space", "POST ", "begin it with a slash"},
		{"no space after the method", "POST/v1/auth/login", "a space after a method"},
		{"method in lower case", "post /v1/auth/login", "upper-case"},
		{"method in mixed case", "Post /v1/auth/login", "upper-case"},
		{"method that is no token", "PO:ST /v1/auth/login", "upper-case"},
		{"method that begins with a digit", "1GET /", "upper-case"},
		{"two methods", "GET,POST /v1/auth/login", "upper-case"},
		{"space first", " /healthz", "leave it out with the space"},
		{"space last", "GET /healthz ", "without spaces"},
		{"space inside", "GET /health z", "without spaces"},
		{"no slash", "healthz", "begin it with a slash"},
		{"host", "api.example.com/healthz", "no host"},
		{"method and host", "GET api.example.com/healthz", "no host"},
		{"URL", "https://api.example.com/healthz", "no host"},
		{"asterisk", "OPTIONS *", "begin it with a slash"},
		{"query", "/healthz?verbose=1", "without query"},
		{"fragment", "/healthz#top", "fragment"},
		{"encoded", "/caf%C3%A9", "decoded"},
		{"backslash", `/v1\auth`, "without"},
		{"semicolon", "/v1/auth;v=1", "without"},
		{"NUL", "/v1/\x00", "without"},
		{"double slash", "/v1//auth", "only clean paths match"},
		{"double slash first", "//v1", "only clean paths match"},
		{"double slash last", "/v1//", "only clean paths match"},
		{"here", "/v1/./auth", "only clean paths match"},
		{"parent", "/v1/../auth", "only clean paths match"},
		{"parent last", "/v1/..", "only clean paths match"},
		{"wildcard without a name", "/v1/{}", "Go identifier"},
		{"rest without a name", "/v1/{...}", "Go identifier"},
		{"name with a hyphen", "/v1/{item-id}", "Go identifier"},
		{"name that begins with a digit", "/v1/{1st}", "Go identifier"},
		{"name with a brace", "/v1/{a{b}", "Go identifier"},
		{"dots in front", "/v1/{...rest}", "Go identifier"},
		{"text before a wildcard", "/v1/item-{id}", "whole segment"},
		{"text after a wildcard", "/v1/{id}.json", "whole segment"},
		{"wildcard left open", "/v1/{id", "whole segment"},
		{"wildcard across a slash", "/v1/{a/b}", "whole segment"},
		{"closing brace alone", "/v1/id}", "whole segment"},
		{"the same name twice", "/{id}/items/{id}", "used twice"},
		{"the same name again as rest", "/{id}/items/{id...}", "used twice"},
		{"rest inside", "/static/{rest...}/css", "at the end"},
		{"rest before a slash", "/static/{rest...}/", "at the end"},
		{"{$} inside", "/v1/{$}/auth", "at the end"},
		{"{$} before a slash", "/v1/{$}/", "at the end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := route.Compile("/healthz", tt.pattern)
			if err == nil {
				t.Fatalf("Compile(%q) succeeded", tt.pattern)
			}
			if s != nil {
				t.Error("Compile returned a Set with its error")
			}
			if !strings.HasPrefix(err.Error(), "pattern ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}

	t.Run("names the bad pattern", func(t *testing.T) {
		t.Parallel()
		_, err := route.Compile("/healthz", "get /v1", "/v2")
		if err == nil || !strings.Contains(err.Error(), `"get /v1"`) {
			t.Errorf("error %v does not name the pattern", err)
		}
	})
}
