/* protocols gives nft the names of protocols. glibc takes them from the file
 * /etc/protocols, which a minimal system lacks: nft then lists numbers where
 * kube-proxy looks for the names that it has written. */
struct protoent {
	char *p_name;
	char **p_aliases;
	int p_proto;
};

static char *none[] = {0};
static struct protoent known[] = {
	{"icmp", none, 1},  {"igmp", none, 2},      {"tcp", none, 6},    {"udp", none, 17},     {"dccp", none, 33},
	{"gre", none, 47},  {"esp", none, 50},      {"ah", none, 51},    {"ipv6-icmp", none, 58}, {"comp", none, 108},
	{"sctp", none, 132}, {"udplite", none, 136},
};
enum { count = sizeof known / sizeof *known };

struct protoent *getprotobynumber(int number) {
	for (int i = 0; i < count; i++)
		if (known[i].p_proto == number)
			return &known[i];
	return 0;
}

struct protoent *getprotobyname(const char *name) {
	for (int i = 0; i < count; i++) {
		const char *a = known[i].p_name, *b = name;
		while (*a && *a == *b)
			a++, b++;
		if (*a == *b)
			return &known[i];
	}
	return 0;
}
