// Package config holds the machine configuration: what a node should be.
//
// It is a stream of YAML documents. Each says apiVersion: v1alpha1 and, with
// kind, what it is about; documents of one kind differ by name, or there is one
// only. Their order is of no meaning. What is not there is left to the platform
// or to defaults, which Parse fills in.
//
// Fields are named after the standards and programs that they are for: RFC 8415
// and 2131 (DHCP), IEEE 802.1Q and 802.1AX, the OCI runtime specification and
// Kubernetes. The tags of the types are the format: yaml has the key, check what
// the value must be, doc what it means. Parse, Encode and Schema all follow them.
package config

import (
	"net/netip"

	"github.com/kilnhq/kiln/internal/bytesize"
)

// Version is the version of the format, the apiVersion of every document.
const Version = "v1alpha1"

// A Config is a whole machine configuration. What is nil or empty was not said.
// The type of each field is a kind of document: a pointer if there is one at
// most, otherwise a list, sorted by the first field, which is their name.
type Config struct {
	Hostname     *Hostname      `doc:"Name of the node."`
	Install      *Install       `doc:"Disk that the node is installed onto when it starts from something else."`
	Volumes      []Volume       `doc:"Partition of the node's disk."`
	Links        []Link         `doc:"Network interface."`
	Resolver     *Resolver      `doc:"How names are looked up."`
	Hosts        *Hosts         `doc:"Names that need no server."`
	Time         *Time          `doc:"Where the time comes from."`
	Kernel       *Kernel        `doc:"Kernel parameters and modules."`
	Files        []File         `doc:"File below /var."`
	TrustedRoots []TrustedRoots `doc:"Certificates that programs on the node trust."`
	Registries   []Registry     `doc:"How a container registry is reached."`
	Services     []Service      `doc:"Container that the node itself runs."`
	Kubelet      *Kubelet       `doc:"The node's kubelet."`
	StaticPods   []StaticPod    `doc:"Pod that the kubelet runs without a cluster."`
	ControlPlane *ControlPlane  `doc:"Cluster that begins with this node."`
	API          *API           `doc:"The node's identity, and who may talk to it."`
}

// Hostname names the node.
type Hostname struct {
	Hostname string `yaml:"hostname" check:"required" doc:"Name of the node, with or without its domain (RFC 1123). Without this document the platform or DHCP names it."`
}

// Install is what the node does about its disk when it starts from something
// else, an ISO image or the network.
type Install struct {
	Disk       string   `yaml:"disk" doc:"Device to install onto: /dev/sda or a link in /dev/disk."`
	Selector   string   `yaml:"selector" doc:"Expression that is true for one disk, instead of its path: size > 100GB && transport == \"nvme\"."`
	Image      string   `yaml:"image" doc:"Installer image. Without it, what is running is installed."`
	Force      bool     `yaml:"force" doc:"Install although the disk holds something."`
	KernelArgs []string `yaml:"kernelArgs" doc:"Kernel arguments that the installed system has besides its own."`
}

// Volume is a partition of the node's disk.
type Volume struct {
	Name    VolumeName    `yaml:"name" check:"required" doc:"Label of the partition."`
	Damaged DamagedPolicy `yaml:"damaged" check:"default=keep" doc:"What to do with a file system that cannot be repaired: keep it, and do without, or recreate it empty."`
}

// Link is a network interface: one that is there, or a bond, VLAN, bridge or
// dummy that is made. Its addresses are those given and those that DHCP and
// router advertisements bring.
type Link struct {
	Name      string         `yaml:"name" check:"required" doc:"Name of the interface, at most 15 bytes. With match, the interface found gets it."`
	Match     *LinkMatch     `yaml:"match" doc:"Which interface is meant, by something more lasting than its name."`
	Optional  bool           `yaml:"optional" doc:"The node is up without this link."`
	MAC       HardwareAddr   `yaml:"mac" doc:"Hardware address to set."`
	MTU       int            `yaml:"mtu" check:"min=68,max=65535" doc:"Largest packet in bytes; at least 1280 for IPv6."`
	Addresses []netip.Prefix `yaml:"addresses" check:"max=256" doc:"Addresses with their prefix lengths: 192.0.2.10/24."`
	Routes    []Route        `yaml:"routes" check:"max=1024" doc:"Routes through this link."`
	DHCP4     bool           `yaml:"dhcp4" doc:"Ask for an IPv4 address (RFC 2131)."`
	DHCP6     bool           `yaml:"dhcp6" doc:"Ask for an IPv6 address (RFC 8415)."`
	AcceptRA  bool           `yaml:"acceptRA" check:"default=true" doc:"Take addresses and routes from router advertisements (RFC 4861)."`
	DHCP      DHCP           `yaml:"dhcp" doc:"What is asked for and taken from DHCP servers."`
	Bond      *Bond          `yaml:"bond" doc:"Make a bond with this name."`
	VLAN      *VLAN          `yaml:"vlan" doc:"Make a VLAN interface with this name."`
	Bridge    *Bridge        `yaml:"bridge" doc:"Make a bridge with this name."`
	Dummy     bool           `yaml:"dummy" doc:"Make an interface with this name that leads nowhere and is always up."`
}

// LinkMatch finds an interface. All that is given must be true for one.
type LinkMatch struct {
	MAC    HardwareAddr `yaml:"mac" doc:"Permanent hardware address."`
	Driver string       `yaml:"driver" doc:"Name of its driver in the kernel; * and ? are wildcards."`
	Path   string       `yaml:"path" doc:"Its bus and address as in sysfs, 0000:03:00.0; * and ? are wildcards."`
}

// Route is a way to other networks.
type Route struct {
	To     netip.Prefix `yaml:"to" doc:"Destination. Without it, all addresses: the default route."`
	Via    netip.Addr   `yaml:"via" doc:"Gateway. Without it, the destination is on the link."`
	Source netip.Addr   `yaml:"source" doc:"Address to send from."`
	Metric int          `yaml:"metric" check:"min=0,max=4294967295" doc:"Lower ones are preferred; 0 is the kernel's default."`
	MTU    int          `yaml:"mtu" check:"min=68,max=65535" doc:"Largest packet in bytes on this route."`
	OnLink bool         `yaml:"onLink" doc:"The gateway is on the link although no address of the link says so."`
}

// DHCP is what DHCPv4 and DHCPv6 are about, if a link has them.
type DHCP struct {
	RouteMetric  int          `yaml:"routeMetric" check:"min=1,max=4294967295,default=1024" doc:"Metric of the routes from DHCP and router advertisements."`
	ClientID     DHCPClientID `yaml:"clientID" check:"default=mac" doc:"How the node identifies itself: mac, or duid (RFC 4361)."`
	SendHostname bool         `yaml:"sendHostname" check:"default=true" doc:"Tell the server the node's name."`
	UseDNS       bool         `yaml:"useDNS" check:"default=true" doc:"Use the name servers and search domains it gives, unless there is a Resolver."`
	UseNTP       bool         `yaml:"useNTP" check:"default=true" doc:"Use the time servers it gives, unless there is a Time with servers."`
	UseHostname  bool         `yaml:"useHostname" check:"default=true" doc:"Use the name it gives, unless there is a Hostname."`
	UseRoutes    bool         `yaml:"useRoutes" check:"default=true" doc:"Use the routes it gives."`
}

// Bond is several links that act as one (IEEE 802.1AX, and the kernel's
// Documentation/networking/bonding.rst).
type Bond struct {
	Members          []string       `yaml:"members" check:"required,max=64" doc:"Names of the links in it, each with a document of its own."`
	Mode             BondMode       `yaml:"mode" check:"default=active-backup" doc:"How the members are used."`
	Primary          string         `yaml:"primary" doc:"Member that is used whenever it is up, for active-backup, balance-tlb and balance-alb."`
	MIIMonitor       Duration       `yaml:"miiMonitor" check:"default=100ms" doc:"How often the members' link state is looked at."`
	UpDelay          Duration       `yaml:"upDelay" doc:"How long a member must be up before it is used, a multiple of miiMonitor."`
	DownDelay        Duration       `yaml:"downDelay" doc:"How long a member must be down before it is not, a multiple of miiMonitor."`
	MinLinks         int            `yaml:"minLinks" check:"min=0,max=64" doc:"Members that must be up for the bond to be up, for 802.3ad."`
	LACPRate         LACPRate       `yaml:"lacpRate" check:"default=slow" doc:"How often the partner sends LACPDUs: slow, every 30 s, or fast, every second."`
	TransmitHash     TransmitHash   `yaml:"transmitHashPolicy" check:"default=layer2" doc:"What decides the member that a packet takes, for balance-xor, 802.3ad and balance-tlb."`
	AggregatorSelect AggregatorRule `yaml:"aggregatorSelect" check:"default=stable" doc:"Which aggregator is used, for 802.3ad."`
}

// VLAN is an interface for the frames of another one that have a tag (IEEE
// 802.1Q).
type VLAN struct {
	ID       int          `yaml:"id" check:"required,min=1,max=4094" doc:"VLAN identifier."`
	Link     string       `yaml:"link" check:"required" doc:"Name of the link below, which has a document of its own."`
	Protocol VLANProtocol `yaml:"protocol" check:"default=802.1q" doc:"Kind of the tags: 802.1q, or 802.1ad for the outer ones of a provider."`
}

// Bridge connects links (IEEE 802.1D).
type Bridge struct {
	Members []string `yaml:"members" check:"max=256" doc:"Names of the links in it, each with a document of its own."`
	STP     bool     `yaml:"stp" doc:"Speak the spanning tree protocol."`
}

// Resolver is how names are looked up.
type Resolver struct {
	Nameservers []netip.Addr `yaml:"nameservers" check:"max=3" doc:"Addresses of DNS servers, in the order they are asked."`
	Search      []string     `yaml:"search" check:"max=6" doc:"Domains in which names without a dot are looked up."`
}

// Hosts are names that need no server.
type Hosts struct {
	Entries []Host `yaml:"entries" check:"required" doc:"Lines of /etc/hosts besides the node's own."`
}

// Host is an address with its names.
type Host struct {
	Address netip.Addr `yaml:"address" check:"required" doc:"IPv4 or IPv6 address."`
	Names   []string   `yaml:"names" check:"required" doc:"Names of the address, the canonical one first."`
}

// Time is where the time comes from (NTP, RFC 5905).
type Time struct {
	Disabled bool     `yaml:"disabled" doc:"Ask no server: something else sets the clock."`
	Servers  []string `yaml:"servers" check:"max=16" doc:"Names or addresses of NTP servers. Without any, those of the platform and of DHCP."`
	BootWait Duration `yaml:"bootWait" check:"default=30s" doc:"How long what needs the right time waits for it when the node starts."`
}

// Kernel is what the kernel is told when the node is up.
type Kernel struct {
	Sysctls map[string]Value `yaml:"sysctls" doc:"Kernel parameters by their names below /proc/sys: net.ipv4.ip_forward."`
	Modules []Module         `yaml:"modules" doc:"Modules to load, in this order."`
}

// Module is a kernel module.
type Module struct {
	Name       string `yaml:"name" check:"required" doc:"Name of the module."`
	Parameters string `yaml:"parameters" doc:"As on the command line of modprobe: NAME=VALUE …"`
}

// File is a file below /var.
type File struct {
	Path     string       `yaml:"path" check:"required" doc:"Absolute path below /var. Missing directories are made."`
	Mode     Mode         `yaml:"mode" check:"default=0644" doc:"Permissions, in octal."`
	User     int          `yaml:"user" check:"min=0,max=4294967294" doc:"Number of the owner."`
	Group    int          `yaml:"group" check:"min=0,max=4294967294" doc:"Number of the group."`
	Encoding FileEncoding `yaml:"encoding" check:"default=text" doc:"How content is written: text, or base64 (RFC 4648)."`
	Content  Secret       `yaml:"content" doc:"What is in the file; never shown."`
}

// TrustedRoots are certificates besides those of the image that programs on the
// node trust.
type TrustedRoots struct {
	Name         string `yaml:"name" check:"required" doc:"What they are for."`
	Certificates string `yaml:"certificates" check:"required" doc:"X.509 certificates in PEM."`
}

// Registry is how a container registry is reached.
type Registry struct {
	Name               string        `yaml:"name" check:"required" doc:"Host, and port if any, as in references of images; * is any that has no document."`
	Mirrors            []Mirror      `yaml:"mirrors" check:"max=64" doc:"Where to look first, in this order."`
	NoFallback         bool          `yaml:"noFallback" doc:"Never ask the registry itself."`
	Auth               *RegistryAuth `yaml:"auth" doc:"Credentials for this host, be it asked as a registry or as a mirror."`
	CA                 string        `yaml:"ca" doc:"X.509 certificates in PEM that this host's may be issued by, besides those of the image."`
	InsecureSkipVerify bool          `yaml:"insecureSkipVerify" doc:"Take any certificate from this host."`
}

// Mirror is a server that has what a registry has.
type Mirror struct {
	URL          string `yaml:"url" check:"required" doc:"http or https URL, without /v2."`
	OverridePath bool   `yaml:"overridePath" doc:"The URL's path is all of it: /v2 is not appended."`
}

// RegistryAuth are credentials of a registry: user name and password, or an
// identity token.
type RegistryAuth struct {
	Username      string `yaml:"username" doc:"User name."`
	Password      Secret `yaml:"password" doc:"Password or access token of the user."`
	IdentityToken Secret `yaml:"identityToken" doc:"Token instead of user name and password."`
}

// Service is a container that the node itself runs.
type Service struct {
	Name         string            `yaml:"name" check:"required" doc:"Name of the service, a DNS label."`
	Image        string            `yaml:"image" check:"required" doc:"Reference of the image, by tag or digest."`
	Pull         PullPolicy        `yaml:"pull" check:"default=missing" doc:"When to ask a registry: missing (the image is not there), always or never."`
	Command      []string          `yaml:"command" doc:"Program and first arguments, instead of the image's entry point."`
	Args         []string          `yaml:"args" doc:"Further arguments, instead of the image's."`
	WorkingDir   string            `yaml:"workingDir" doc:"Directory that it starts in, instead of the image's."`
	User         *int              `yaml:"user" check:"min=0,max=4294967294" doc:"Number of the user that it runs as, instead of the image's."`
	Group        *int              `yaml:"group" check:"min=0,max=4294967294" doc:"Number of its group, instead of the image's."`
	Environment  map[string]Secret `yaml:"environment" doc:"Environment variables; the values are never shown."`
	Mounts       []Mount           `yaml:"mounts" doc:"What of the node it sees, and where."`
	Network      ServiceNetwork    `yaml:"network" check:"default=host" doc:"host (the node's), bridge (one of its own behind the node) or none."`
	Ports        []Port            `yaml:"ports" doc:"Ports of the node that lead to it, if it is on the bridge."`
	WritableRoot bool              `yaml:"writableRoot" doc:"Its root file system can be written to, until it ends."`
	Privileged   bool              `yaml:"privileged" doc:"All capabilities and devices, and no seccomp filter."`
	Capabilities []string          `yaml:"capabilities" check:"max=64" doc:"Capabilities besides the runtime's default ones: CAP_NET_ADMIN."`
	Resources    Resources         `yaml:"resources" doc:"What it may use."`
	Restart      RestartPolicy     `yaml:"restart" check:"default=always" doc:"When to start it again: always, on-failure or never."`
	WaitFor      WaitFor           `yaml:"waitFor" doc:"What must be there before it starts."`
	StopTimeout  Duration          `yaml:"stopTimeout" check:"default=10s" doc:"From SIGTERM to SIGKILL."`
}

// Mount is a directory or file that a service sees.
type Mount struct {
	Type     MountType     `yaml:"type" check:"default=bind" doc:"bind, or tmpfs."`
	Source   string        `yaml:"source" doc:"Absolute path on the node, for bind; missing directories below /var are made."`
	Target   string        `yaml:"target" check:"required" doc:"Absolute path in the container."`
	ReadOnly bool          `yaml:"readOnly" doc:"The service cannot write to it."`
	Size     bytesize.Size `yaml:"size" doc:"Most that a tmpfs holds: 64MiB."`
}

// Port is a port of the node that leads to a service.
type Port struct {
	Host      int          `yaml:"host" check:"required,min=1,max=65535" doc:"Port of the node."`
	Container int          `yaml:"container" check:"required,min=1,max=65535" doc:"Port of the service."`
	Protocol  PortProtocol `yaml:"protocol" check:"default=tcp" doc:"tcp or udp."`
}

// Resources bound what a service may use. 0 is no bound.
type Resources struct {
	Memory bytesize.Size `yaml:"memory" doc:"Memory: 256MiB."`
	CPUs   float64       `yaml:"cpus" check:"min=0,max=4096" doc:"Processors: 0.5 is half of one."`
	PIDs   int           `yaml:"pids" check:"min=0,max=4194304" doc:"Processes and threads."`
}

// WaitFor is what must be there before a service starts.
type WaitFor struct {
	Services []string `yaml:"services" doc:"Services that must run."`
	Network  bool     `yaml:"network" doc:"All links that are not optional have an address."`
	Time     bool     `yaml:"time" doc:"The clock is right."`
	Paths    []string `yaml:"paths" doc:"Absolute paths that must exist."`
}

// Kubelet runs the node's kubelet, which an extension brings.
type Kubelet struct {
	NodeName            string            `yaml:"nodeName" doc:"Name in the cluster, instead of the host name."`
	NodeSubnets         []netip.Prefix    `yaml:"nodeSubnets" doc:"The node's address in the cluster is in one of them."`
	Labels              map[string]string `yaml:"labels" doc:"Labels that the node registers with."`
	Taints              []Taint           `yaml:"taints" doc:"Taints that the node registers with."`
	BootstrapKubeconfig Secret            `yaml:"bootstrapKubeconfig" doc:"Kubeconfig for TLS bootstrapping. Without one on the node either, the kubelet runs static pods alone."`
	ClusterDNS          []netip.Addr      `yaml:"clusterDNS" doc:"Addresses of the cluster's DNS service."`
	ClusterDomain       string            `yaml:"clusterDomain" check:"default=cluster.local" doc:"DNS domain of the cluster."`
	SandboxImage        string            `yaml:"sandboxImage" doc:"Image of the process that holds a pod's name spaces, usually called pause, instead of containerd's choice."`
	Config              Object            `yaml:"config" doc:"Fields of KubeletConfiguration (kubelet.config.k8s.io/v1beta1) that are not kiln's own."`
}

// Taint keeps pods away that do not tolerate it.
type Taint struct {
	Key    string      `yaml:"key" check:"required" doc:"Key of the taint."`
	Value  string      `yaml:"value" doc:"Value of the taint."`
	Effect TaintEffect `yaml:"effect" check:"required" doc:"NoSchedule, PreferNoSchedule or NoExecute."`
}

// StaticPod is a pod that the kubelet runs without a cluster.
type StaticPod struct {
	Name string `yaml:"name" check:"required" doc:"Name of the document; the pod has its own."`
	Pod  Object `yaml:"pod" check:"required" doc:"A Pod of apiVersion v1. It is shown: secrets go into a File."`
}

// ControlPlane makes the node the first of a cluster: kubeadm sets that up, once.
type ControlPlane struct {
	Cluster Object `yaml:"cluster" doc:"Fields of kubeadm's ClusterConfiguration (kubeadm.k8s.io/v1beta4)."`
	Init    Object `yaml:"init" doc:"Fields of kubeadm's InitConfiguration (kubeadm.k8s.io/v1beta4) that are not kiln's own."`
}

// API is the node's identity and who may talk to it.
type API struct {
	Port      int      `yaml:"port" check:"min=1,max=65535,default=50000" doc:"TCP port."`
	Names     []string `yaml:"names" doc:"Names and addresses that clients use besides those the node knows it has."`
	Issuer    KeyPair  `yaml:"issuer" check:"required" doc:"What the node issues its own certificate with."`
	ClientCAs string   `yaml:"clientCAs" check:"required" doc:"X.509 certificates in PEM that issue the clients' certificates."`
}

// KeyPair is a certificate and its key.
type KeyPair struct {
	Certificate string `yaml:"certificate" check:"required" doc:"X.509 certificate in PEM, followed by those between it and the root, if any."`
	Key         Secret `yaml:"key" check:"required" doc:"Private key in PEM (PKCS #8)."`
}
