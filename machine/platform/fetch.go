package platform

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxRetryAfter bounds what a server may ask to be waited for.
const maxRetryAfter = time.Minute

func portTaken(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// redact returns what of a URL may be told: user, password and query may be secret.
func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// A request is one to a metadata service or to a server.
type request struct {
	method string // "" is GET
	url    string
	header [][2]string
	body   []byte
	limit  int64 // of the answer, in bytes; 0 is MaxSize
	// strict says that 404 is no way to say that there is none.
	strict bool
	advice map[int]string // what to do about a status
}

// An answer is what a server returned with status 200.
type answer struct {
	body   []byte
	header http.Header
}

// do makes a request. ErrNone is that there is nothing at the URL.
func do(ctx context.Context, client *http.Client, r request) (*answer, error) {
	if r.method == "" {
		r.method = http.MethodGet
	}
	if r.limit == 0 {
		r.limit = MaxSize
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("%q is no URL", strings.SplitN(r.url, "?", 2)[0])
	}
	for _, h := range r.header {
		req.Header[h[0]] = []string{h[1]} // spelt as given: http.Header.Set would not keep it
	}
	what := r.method + " " + redact(req.URL)
	resp, err := client.Do(req)
	if err != nil {
		return nil, wentWrong(what, err)
	}
	defer resp.Body.Close()
	if err := status(what, resp, &r); err != nil {
		return nil, err
	}
	if resp.ContentLength > r.limit {
		return nil, fmt.Errorf("%s: the answer has %d bytes, want at most %d", what, resp.ContentLength, r.limit)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, r.limit+1))
	if err != nil {
		return nil, wentWrong(what, err)
	}
	if int64(len(body)) > r.limit {
		return nil, fmt.Errorf("%s: the answer has more than %d bytes", what, r.limit)
	}
	return &answer{body, resp.Header}, nil
}

// wentWrong is the error for a request without an answer, or without all of it.
func wentWrong(what string, err error) error {
	var refused *redirectError
	if errors.As(err, &refused) {
		return fmt.Errorf("%s: %w", what, refused)
	}
	// A url.Error repeats the URL with its query.
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("the answer took too long")
	}
	return &TemporaryError{Err: &unreachableError{what, err}}
}

// An unreachableError is that a server did not answer, or not to the end.
type unreachableError struct {
	what string
	err  error
}

func (e *unreachableError) Error() string { return e.what + ": " + e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

func status(what string, resp *http.Response, r *request) error {
	code := resp.StatusCode
	err := fmt.Errorf("%s: %s", what, strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code))))
	if advice := r.advice[code]; advice != "" {
		err = fmt.Errorf("%w: %s", err, advice)
	}
	switch {
	case code == http.StatusOK:
		return nil
	case code == http.StatusNoContent, code == http.StatusNotFound && !r.strict, code == http.StatusGone && !r.strict:
		return fmt.Errorf("%w: %w", ErrNone, err)
	case code == http.StatusNotFound, code == http.StatusRequestTimeout, code == http.StatusTooEarly,
		code == http.StatusTooManyRequests, code >= 500:
		return &TemporaryError{Err: err, After: retryAfter(resp.Header)}
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		if r.advice[code] == "" {
			err = fmt.Errorf("%w: the server does not let this machine have it", err)
		}
	}
	return err
}

// retryAfter returns how long a server wants to be left alone. A date is compared
// with the server's own, because this machine's clock may be wrong.
func retryAfter(h http.Header) time.Duration {
	var d time.Duration
	text := h.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if until, err := http.ParseTime(text); err == nil {
		if now, err := http.ParseTime(h.Get("Date")); err == nil {
			d = until.Sub(now)
		}
	}
	return min(max(d, 0), maxRetryAfter)
}

// decodeBase64 decodes what a service stores as base64, with or without line ends
// and padding.
func decodeBase64(data []byte) ([]byte, error) {
	text := strings.TrimRight(strings.Join(strings.Fields(string(data)), ""), "=")
	out, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("want base64: %w", err)
	}
	return out, nil
}
