package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// A service is a metadata service: an HTTP server of the platform at an address
// that does not leave the host.
type service struct {
	name  string
	bases []string // where it is; the next is tried where one cannot be reached
	// header is what every request has.
	header [][2]string
	// token says how to get the header that requests need in addition.
	token *token
	// proof is a header that every answer has, so that it is no one else's.
	proof [2]string
	// userData is the path of the configuration; encoded says that it is base64.
	userData string
	encoded  bool
	lowPort  bool
	advice   map[int]string

	// Metadata is a JSON document, or texts of their own, or both.
	document string
	decode   func([]byte, *Metadata) error
	accept   string // the header Accept for the document
	texts    texts
}

// A token is fetched with a PUT, and sent along with requests.
type token struct {
	path   string
	ttl    [2]string // header that says how many seconds it is good for
	header string    // that it is sent in
}

// texts are the paths of texts.
type texts struct{ hostname, instanceID, region, zone, private, public string }

// maxDocument bounds metadata, in bytes.
const maxDocument = 1 << 20

// linkLocal is where most of them are (RFC 3927).
const linkLocal = "http://169.254.169.254"

// services returns the metadata services that differ in names only. What each
// follows is in docs/platforms.md.
func services() []service {
	off := map[int]string{http.StatusForbidden: "the metadata service of this machine is turned off; turn it on, or give the configuration with " + ArgConfig}
	ec2 := texts{
		hostname: "/latest/meta-data/local-hostname", instanceID: "/latest/meta-data/instance-id",
		zone: "/latest/meta-data/placement/availability-zone", region: "/latest/meta-data/placement/region",
		private: "/latest/meta-data/local-ipv4", public: "/latest/meta-data/public-ipv4",
	}
	return []service{
		{
			name: "akamai", bases: []string{linkLocal, "http://[fd00:a9fe:a9fe::1]"},
			token:    &token{"/v1/token", [2]string{"Metadata-Token-Expiry-Seconds", "3600"}, "Metadata-Token"},
			userData: "/v1/user-data", encoded: true,
			document: "/v1/instance", accept: "application/json", decode: akamaiInstance,
		},
		{
			name: "alibaba", bases: []string{"http://100.100.100.200"},
			token:    &token{"/latest/api/token", [2]string{"X-aliyun-ecs-metadata-token-ttl-seconds", "3600"}, "X-aliyun-ecs-metadata-token"},
			userData: "/latest/user-data",
			advice:   off,
			texts: texts{
				hostname: "/latest/meta-data/hostname", instanceID: "/latest/meta-data/instance-id",
				zone: "/latest/meta-data/zone-id", region: "/latest/meta-data/region-id",
				private: "/latest/meta-data/private-ipv4", public: "/latest/meta-data/eipv4",
			},
		},
		{
			name: "aws", bases: []string{linkLocal, "http://[fd00:ec2::254]"},
			token:    &token{"/latest/api/token", [2]string{"X-aws-ec2-metadata-token-ttl-seconds", "21600"}, "X-aws-ec2-metadata-token"},
			userData: "/latest/user-data",
			advice:   off,
			texts:    ec2,
		},
		{
			name: "digital-ocean", bases: []string{linkLocal},
			userData: "/metadata/v1/user-data",
			document: "/metadata/v1.json", decode: digitalOcean,
		},
		{
			name: "exoscale", bases: []string{linkLocal},
			userData: "/1.0/user-data",
			texts: texts{
				hostname: "/1.0/meta-data/local-hostname", instanceID: "/1.0/meta-data/instance-id",
				zone:    "/1.0/meta-data/availability-zone",
				private: "/1.0/meta-data/local-ipv4", public: "/1.0/meta-data/public-ipv4",
			},
		},
		{
			name: "gcp", bases: []string{"http://metadata.google.internal", linkLocal},
			header:   [][2]string{{"Metadata-Flavor", "Google"}},
			proof:    [2]string{"Metadata-Flavor", "Google"},
			userData: "/computeMetadata/v1/instance/attributes/user-data",
			document: "/computeMetadata/v1/instance/?recursive=true&alt=json", decode: googleInstance,
		},
		{
			name: "hcloud", bases: []string{linkLocal},
			userData: "/hetzner/v1/userdata",
			texts: texts{
				hostname: "/hetzner/v1/metadata/hostname", instanceID: "/hetzner/v1/metadata/instance-id",
				zone: "/hetzner/v1/metadata/availability-zone", region: "/hetzner/v1/metadata/region",
				public: "/hetzner/v1/metadata/public-ipv4",
			},
		},
		{
			name: "oracle", bases: []string{linkLocal, "http://[fd00:c1::a9fe:a9fe]"},
			header:   [][2]string{{"Authorization", "Bearer Oracle"}},
			userData: "/opc/v2/instance/metadata/user_data", encoded: true,
			document: "/opc/v2/instance/", decode: oracleInstance,
		},
		{
			name: "scaleway", bases: []string{"http://169.254.42.42", "http://[fd00:42::42]"}, lowPort: true,
			userData: "/user_data/cloud-init",
			document: "/conf?format=json", decode: scalewayConf,
		},
		{
			name: "upcloud", bases: []string{linkLocal},
			userData: "/metadata/v1/user_data",
			document: "/metadata/v1.json", decode: upCloud,
		},
		{
			name: "vultr", bases: []string{linkLocal},
			userData: "/latest/user-data",
			document: "/v1.json", decode: vultr,
		},
	}
}

// cloudStackService is the virtual router of CloudStack, which DNS knows.
func cloudStackService() service {
	return service{
		name: "cloudstack", bases: []string{"http://data-server."},
		userData: "/latest/user-data",
		texts: texts{
			hostname: "/latest/meta-data/local-hostname", instanceID: "/latest/meta-data/instance-id",
			zone:    "/latest/meta-data/availability-zone",
			private: "/latest/meta-data/local-ipv4", public: "/latest/meta-data/public-ipv4",
		},
	}
}

// openStackService is that of Nova.
func openStackService() service {
	return service{
		name: "openstack", bases: []string{linkLocal},
		userData: "/openstack/latest/user_data",
		document: "/openstack/latest/meta_data.json", decode: openStackMetaData,
		texts: texts{
			private: "/latest/meta-data/local-ipv4", public: "/latest/meta-data/public-ipv4",
		},
	}
}

// ask makes a metadata service what a platform asks.
func (p *Platform) ask(c *conversation) {
	p.Sources = append(p.Sources, Source{Name: c.name, Configuration: c.configuration, Patience: patienceNetwork})
	p.Metadata = c.metadata
}

// A conversation is what is said to a service.
type conversation struct {
	service
	client *http.Client
}

func (e *Environment) service(s service) *conversation {
	if s.lowPort {
		return &conversation{s, e.LowPort}
	}
	return &conversation{s, e.Client}
}

// configuration asks for the configuration, once.
func (c *conversation) configuration(ctx context.Context) ([]byte, error) {
	data, err := c.reach(ctx, func(base string) ([]byte, error) {
		header, err := c.authorize(ctx, base)
		if err != nil {
			return nil, err
		}
		limit := int64(MaxSize)
		if c.encoded {
			limit = 2 * MaxSize
		}
		return c.get(ctx, base+c.userData, header, limit)
	})
	if err != nil {
		return nil, err
	}
	if c.encoded {
		if data, err = decodeBase64(data); err != nil {
			return nil, fmt.Errorf("%s: %w", c.userData, err)
		}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("%w: the user data is empty", ErrNone)
	}
	return data, nil
}

// reach calls f with each base until one answers.
func (c *conversation) reach(ctx context.Context, f func(base string) ([]byte, error)) (data []byte, err error) {
	for i, base := range c.bases {
		data, err = f(base)
		var unreachable *unreachableError
		if !errors.As(err, &unreachable) || i == len(c.bases)-1 || ctx.Err() != nil {
			break
		}
	}
	return data, err
}

// authorize returns the headers that requests to base need.
func (c *conversation) authorize(ctx context.Context, base string) ([][2]string, error) {
	if c.token == nil {
		return c.header, nil
	}
	a, err := do(ctx, c.client, request{
		method: http.MethodPut, url: base + c.token.path, header: [][2]string{c.token.ttl},
		limit: 4 << 10, advice: c.advice, strict: true,
	})
	if err != nil {
		return nil, err
	}
	value := strings.TrimSpace(string(a.body))
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("PUT %s%s: found a token of %d bytes that is no word", base, c.token.path, len(a.body))
	}
	return append(slices.Clone(c.header), [2]string{c.token.header, value}), nil
}

func (c *conversation) get(ctx context.Context, url string, header [][2]string, limit int64) ([]byte, error) {
	a, err := do(ctx, c.client, request{url: url, header: header, limit: limit, advice: c.advice})
	if err != nil {
		return nil, err
	}
	if c.proof[0] != "" && a.header.Get(c.proof[0]) != c.proof[1] {
		return nil, fmt.Errorf("GET %s: the answer has no header %q; it is not from the metadata service", url, c.proof[0]+": "+c.proof[1])
	}
	return a.body, nil
}
